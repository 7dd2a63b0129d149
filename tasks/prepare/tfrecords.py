"""A dataset in TFDS's own files: shards of records, and dataset_info.json.

TensorFlow reads the records and compares their checksums, but it also allocates what a record
claims: measured, one that claims 10^15 bytes aborts the process, one that claims 4 GB in a sparse
file takes 4 GB. So the lengths of all records are compared with the file first.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.prepare import members, on_cpu, png
from tasks.prepare.datasets import Dataset
from tasks.prepare.records import Record, Source, check_size, check_splits, source_of
from tasks.prepare.refusals import SourceError, shown

INFO = "dataset_info.json"
_TEMPLATES = ("", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
_LARGEST_TEXT = 4 << 20
# Framing of a record: its length in 8 bytes and their checksum in 4; content; its checksum in 4.
_LENGTH, _FRAME = 8, 16


def find(dataset: Dataset, sources: Sequence[pathlib.Path]) -> pathlib.Path | None:
    """Return the folder with the ready dataset, if a source is it or one of the folders around it.

    Raises:
        SourceError: if there are other sources beside it.
    """
    parts = dataset.folder.split("/")
    for source in sources:
        for start in range(len(parts) + 1):
            folder = source.joinpath(*parts[start:])
            if (folder / INFO).is_file():
                if len(sources) > 1:
                    raise SourceError(f"{folder} is a whole dataset: name it alone with --source.")
                return folder
    return None


def read(dataset: Dataset, folder: pathlib.Path, *, partial: bool) -> Source:
    """Return the dataset that dataset_info.json describes, every shard in its place.

    Raises:
        SourceError: if it is another dataset, or a file is damaged or missing. A damaged record is
            found when it is read.
    """
    members.check_source(folder)
    info = _info(folder)
    for key, expected, got in (
        ("name", dataset.name, info.name),
        ("version", dataset.version, info.version),
        ("configName", dataset.config, info.config_name or dataset.config),
        ("fileFormat", "tfrecord", info.file_format or "tfrecord"),
    ):
        if got != expected:
            raise SourceError(
                f"{folder / INFO} must have {key} {expected!r}, got {got!r}: {dataset.title} "
                f"needs {dataset.sources}."
            )
    shards = {split.name: _shards(folder, dataset, split) for split in info.splits}
    check_splits(dataset, shards, [folder], partial=partial)
    sizes = {split: sum(shards[split].values()) for split in dataset.sizes if split in shards}
    for split, size in sizes.items():
        check_size(dataset, split, size, partial=partial)
    found = {split: shards[split] for split in sizes}
    return source_of(dataset, found, _records, partial=partial, sizes=sizes, in_order=True)


def image_of(record: bytes, what: str) -> bytes:
    """Return the bytes of feature "image" of a serialized `tf.train.Example`.

    Raises:
        SourceError: if it is no Example, or has no such feature with one value.
    """
    from google.protobuf.message import DecodeError

    try:
        features = on_cpu.tensorflow().train.Example.FromString(record).features.feature
    except DecodeError as error:
        raise SourceError(f"{what} is damaged: it is no tf.train.Example.") from error
    if "image" not in features or len(features["image"].bytes_list.value) != 1:
        raise SourceError(f"{what} has no feature 'image' with one value.")
    return features["image"].bytes_list.value[0]


def _records(dataset: Dataset, split: str, shards: Mapping[pathlib.Path, int]) -> Iterator[Record]:
    tf, index = on_cpu.tensorflow(), 0
    for path, expected in shards.items():
        _check_lengths(path, png.most_bytes(dataset.image_shape))
        found = 0
        try:
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                what = f"record {found:,} of {path}"
                content = image_of(record, what)
                image = png.decode(content, what, shape=dataset.image_shape)
                yield Record(key=index, image=image, png=content)
                found, index = found + 1, index + 1
        except tf.errors.OpError as error:
            raise SourceError(f"{path} is damaged: {error.message}. Copy it again.") from error
        if found != expected:
            raise SourceError(
                f"{path} must hold {expected:,} records by {INFO}, and holds {found:,}. "
                "Copy the folder again."
            )


def _check_lengths(path: pathlib.Path, largest: int) -> None:
    with members.damage_named(str(path)), path.open("rb") as file:
        size, position = path.stat().st_size, 0
        while position < size:
            file.seek(position)
            length = int.from_bytes(file.read(_LENGTH), "little")
            position += _FRAME + length
            if position > size:
                raise SourceError(f"{path} is cut short or damaged: its last record is not whole.")
            if length > largest:
                raise SourceError(
                    f"{path} has a record of {length:,} bytes, which is no image of this size."
                )


def _info(folder: pathlib.Path) -> Any:
    """Return dataset_info.json as TFDS's message; the parser checks all types."""
    from google.protobuf import json_format

    path = folder / INFO
    message = on_cpu.tfds().core.proto.dataset_info_pb2.DatasetInfo()
    with members.damage_named(str(path)):
        if path.stat().st_size > _LARGEST_TEXT:
            raise SourceError(f"{path} is larger than {_LARGEST_TEXT:,} bytes.")
        text = path.read_bytes()
    try:
        return json_format.Parse(text, message)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} is damaged: {error!s:.300}. Copy the folder again.") from error


def _shards(folder: pathlib.Path, dataset: Dataset, split: Any) -> dict[pathlib.Path, int]:
    """Return the number of records of each file of a split."""
    if split.name not in dataset.sizes or split.filepath_template not in _TEMPLATES:
        raise SourceError(
            f"{folder / INFO} is damaged: it has a split {split.name!r} in files named "
            f"{split.filepath_template!r}. Copy the folder again."
        )
    prefix, count = f"{dataset.name}-{split.name}.tfrecord", len(split.shard_lengths)
    shards = {
        folder / f"{prefix}-{index:05d}-of-{count:05d}": length
        for index, length in enumerate(split.shard_lengths)
    }
    if missing := [path.name for path in shards if not path.is_file()]:
        raise SourceError(
            f"{folder} lacks {len(missing)} of {count} shards of split {split.name!r}: "
            f"{shown(missing)}. Copy the folder again."
        )
    return shards
