"""A dataset that is ready: TFDS's shards and dataset_info.json, checked before they are copied."""

import dataclasses
import json
import pathlib
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, final

from tasks.prepare import members, png
from tasks.prepare.datasets import Dataset
from tasks.prepare.records import check_size, check_splits
from tasks.prepare.refusals import SourceError, shown

INFO = "dataset_info.json"
FEATURES = "features.json"
_TEMPLATES = ("", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
_LARGEST_TEXT = 4 << 20
_LARGEST_NUMBER_OF_SHARDS = 100_000
# Framing of a record: its length, a checksum of it, the content, a checksum of it.
_HEAD, _TAIL = struct.Struct("<QI"), 4


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadySource:
    """A dataset to be copied as it is.

    Attributes:
        dataset: which.
        folder: where it is.
        shards: per split, file name -> number of records, in order.
        texts: names of the small files beside them.
        partial: any number of images is accepted.
    """

    dataset: Dataset
    folder: pathlib.Path
    shards: Mapping[str, Mapping[str, int]]
    texts: tuple[str, ...]
    partial: bool

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of each split."""
        return {split: sum(shards.values()) for split, shards in self.shards.items()}

    def check_records(self) -> Iterator[int]:
        """Reads every record; yields how many images of the right kind there were so far.

        Raises:
            SourceError: at the first record or shard that is not what it should be.
        """
        done = 0
        assert self.dataset.image_shape is not None
        largest = png.most_bytes(self.dataset.image_shape)
        for shards in self.shards.values():
            for name, expected in shards.items():
                found = 0
                for number, record in enumerate(_records(self.folder / name, largest)):
                    what = f"record {number:,} of {self.folder / name}"
                    png.decode_rgb(image_of(record, what), self.dataset.image_shape, what)
                    found, done = found + 1, done + 1
                    yield done
                if found != expected:
                    raise SourceError(
                        f"{self.folder / name} must hold {expected:,} records by {INFO}, and "
                        f"holds {found:,}. Copy the folder again."
                    )


def find(path: pathlib.Path, dataset: Dataset) -> pathlib.Path | None:
    """The folder with the dataset, if `path` is it or one of the folders around it."""
    parts = dataset.folder.split("/")
    for start in range(len(parts) + 1):
        if (folder := path.joinpath(*parts[start:])).joinpath(INFO).is_file():
            return folder
    return None


def read(dataset: Dataset, folder: pathlib.Path, *, partial: bool) -> ReadySource:
    """What dataset_info.json promises, with every shard in its place.

    Raises:
        SourceError: if it is another dataset, or a file is missing.
    """
    members.check_source(folder)
    info = _json(folder / INFO)
    for key, expected in (("name", dataset.name), ("version", dataset.version)):
        if info.get(key) != expected:
            raise SourceError(
                f"{folder / INFO} must have {key} {expected!r}, got {info.get(key)!r}: "
                f"{dataset.title} needs {dataset.sources}."
            )
    if info.get("configName", dataset.config) != dataset.config:
        raise SourceError(
            f"{folder} holds {info['configName']!r} images; {dataset.title} was asked for."
        )
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise SourceError(f"{folder} must hold tfrecord files, got {info['fileFormat']!r}.")
    shards: dict[str, dict[str, int]] = {}
    listed = info.get("splits")
    for split in listed if isinstance(listed, list) else []:
        name = split.get("name") if isinstance(split, dict) else None
        if isinstance(name, str) and name in dataset.sizes:
            shards[name] = _shards(folder, dataset, split)
    check_splits(dataset, shards, [folder], partial=partial)
    source = ReadySource(
        dataset=dataset,
        folder=folder,
        shards={split: shards[split] for split in dataset.sizes if split in shards},
        texts=tuple(_texts(folder)),
        partial=partial,
    )
    for split, size in source.sizes.items():
        check_size(dataset, split, size, partial=partial)
    return source


def image_of(record: bytes, what: str) -> bytes:
    """The bytes of feature "image" of a serialized `tf.train.Example`.

    Raises:
        SourceError: if it is no Example, or has no such feature with one value.
    """
    try:
        for features in _fields(record, 1):
            for entry in _fields(features, 1):
                if bytes(*_fields(entry, 1)) == b"image":
                    (feature,) = _fields(entry, 2)
                    (byte_list,) = _fields(feature, 1)
                    (image,) = _fields(byte_list, 1)
                    return image
    except (ValueError, TypeError, IndexError) as error:
        raise SourceError(f"{what} is damaged: no tf.train.Example with one image.") from error
    raise SourceError(f"{what} has no feature 'image'.")


def _fields(message: bytes, number: int) -> Iterator[bytes]:
    """Contents of the length-delimited fields `number` of a protocol buffer."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag & 7 != 2:
            raise ValueError("a field that no image needs")
        size, position = _varint(message, position)
        if size > len(message) - position:
            raise ValueError("a field longer than its message")
        if tag >> 3 == number:
            yield message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number of more than ten bytes")


def _records(path: pathlib.Path, largest: int) -> Iterator[bytes]:
    with members.damage_named(str(path)), path.open("rb") as file:
        left = path.stat().st_size
        while left:
            content, left = _record(file, left, path, largest)
            yield content


def _record(file: IO[bytes], left: int, path: pathlib.Path, largest: int) -> tuple[bytes, int]:
    head = file.read(_HEAD.size)
    # The checksums are compared when the copy is read back.
    size = _HEAD.unpack(head)[0] if len(head) == _HEAD.size else left
    left -= _HEAD.size + size + _TAIL
    if left < 0:
        raise SourceError(f"{path} is cut short or damaged: its last record is not whole.")
    if size > largest:
        raise SourceError(f"{path} has a record of {size:,} bytes, which is no image of this size.")
    content = file.read(size)
    file.read(_TAIL)
    return content, left


def _shards(folder: pathlib.Path, dataset: Dataset, split: Mapping[str, Any]) -> dict[str, int]:
    lengths = split.get("shardLengths")
    if split.get("filepathTemplate", "") not in _TEMPLATES:
        raise SourceError(f"{folder / INFO} names its files {split['filepathTemplate']!r}.")
    if not isinstance(lengths, list) or not 0 < len(lengths) <= _LARGEST_NUMBER_OF_SHARDS:
        raise SourceError(f"{folder / INFO} must list the shardLengths of every split.")
    shards = {}
    for index, length in enumerate(lengths):
        if not re.fullmatch(r"\d{1,12}", str(length)):
            raise SourceError(f"{folder / INFO} has a shard of length {length!r:.50}.")
        name = f"{dataset.name}-{split['name']}.tfrecord-{index:05d}-of-{len(lengths):05d}"
        shards[name] = int(length)
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise SourceError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards of split {split['name']!r}: "
            f"{shown(missing)}. Copy the folder again."
        )
    return shards


def _texts(folder: pathlib.Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".txt") and path.is_file() and path.name[0] != ".":
            if path.stat().st_size > _LARGEST_TEXT:
                raise SourceError(f"{path} is larger than {_LARGEST_TEXT:,} bytes.")
            yield path.name


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_TEXT:
            raise SourceError(f"{path} is larger than {_LARGEST_TEXT:,} bytes.")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is damaged: {error}. Copy the folder again.") from error
    if not isinstance(content, dict):
        raise SourceError(f"{path} must hold a JSON object.")
    return content


def sources_of(dataset: Dataset, sources: Sequence[pathlib.Path]) -> pathlib.Path | None:
    """The folder among `sources` that is ready to be copied, if one is.

    Raises:
        SourceError: if there are other sources beside it.
    """
    ready = [folder for each in sources if (folder := find(each, dataset)) is not None]
    if ready and len(sources) > 1:
        raise SourceError(f"{ready[0]} is a whole dataset: name it alone with --source.")
    return ready[0] if ready else None
