"""Write records to TFDS's files with TFDS's own builder: its names, order and shards."""

import contextlib
import errno
import json
import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from idode_gin.feed.image_fingerprints import (
    RECORD,
    RESIZING,
    SPLITTING,
    Fingerprinter,
    ImageFingerprint,
)
from idode_gin.reports import progress
from tasks.prepare import on_cpu, png, stopping
from tasks.prepare.records import Source, check_size
from tasks.prepare.refusals import SourceError, TargetError
from tasks.prepare.targets import explain

METADATA = "metadata.json"
_CHUNK_BYTES = 32 << 20  # of the images hashed or read back at one time


def write(source: Source, data_dir: pathlib.Path) -> dict[str, ImageFingerprint]:
    """Write a dataset below `data_dir`, read it back, and add its fingerprint.

    Returns:
        per split, the fingerprint of the images in their order on disk.

    Raises:
        SourceError: if a record is refused, or a split is not complete.
        TargetError: if the disk is full or fails.
    """
    tfds, dataset = on_cpu.tfds(), source.dataset
    read = {split: Fingerprinter() for split in source.splits}
    features: dict[str, Any] = {
        "image": tfds.features.Image(shape=dataset.image_shape, encoding_format="png")
    }
    if source.label_names:
        features["id"] = tfds.features.Text()
        features["label"] = tfds.features.ClassLabel(names=source.label_names)

    class Builder(tfds.dataset_builders.AdhocBuilder, skip_registration=True):  # type: ignore
        url_infos = None  # nothing is downloaded; TFDS would look for a list of checksums

        def _info(self) -> Any:
            info = super()._info()
            # TFDS would make an empty folder in /tmp for it at every start, and leave it there.
            info.initialize_from_bucket = lambda: None
            return info

    # TFDS prints that it downloads to the temporary folder.
    with _disk_explained(data_dir), progress.alone():
        builder = Builder(
            name=dataset.name,
            config=dataset.config,
            version=dataset.version,
            data_dir=str(data_dir),
            description=f"{dataset.title}, prepared from {dataset.sources}.",
            features=tfds.features.FeaturesDict(features),
            split_datasets={split: _examples(source, split, read[split]) for split in read},
            disable_shuffling=source.in_order,
        )
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
        written = record(
            pathlib.Path(builder.data_dir),
            partial=source.partial,
            notes={RESIZING: source.resizing, SPLITTING: source.splitting},
        )
    for split, fingerprinter in read.items():
        if fingerprinter.result().content_sha256 != written[split].content_sha256:
            raise TargetError(
                f"Split {split!r} reads back with other pixels than were written: the disk below "
                f"{data_dir} or the memory of this machine is faulty."
            )
    return written


def record(
    folder: pathlib.Path, *, partial: bool, notes: Mapping[str, str] = types.MappingProxyType({})
) -> dict[str, ImageFingerprint]:
    """Read a dataset on disk, its shards one after the other, and write its fingerprint beside it.

    Args:
        folder: the dataset's.
        partial: any number of images was accepted.
        notes: what was done to the images, in words by key, recorded beside the fingerprints if
            not empty.

    Returns:
        per split, the fingerprint of the images in their order on disk.
    """
    tf, tfds = on_cpu.tensorflow(), on_cpu.tfds()

    @tf.autograph.experimental.do_not_convert  # converted code goes to files in /tmp
    def image_of(example: Mapping[str, Any]) -> Any:
        return example["image"]

    builder = tfds.builder_from_directory(str(folder))
    written = {}
    for split, info in builder.info.splits.items():
        fingerprinter = Fingerprinter()
        dataset = builder.as_dataset(
            split=split,
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
            decoders=tfds.decode.PartialDecoding({"image": True}),
        )
        dataset = dataset.map(image_of)
        count = max(map(_chunk, dataset.take(1).as_numpy_iterator()), default=1)
        dataset = dataset.batch(count).prefetch(1)
        with progress.phase(f"reading back {split}", info.num_examples) as going_on:
            for images in dataset.as_numpy_iterator():
                stopping.check()
                fingerprinter.add(images)
                going_on.advance(len(images))
        written[split] = fingerprinter.result()
    content: dict[str, Any] = {split: each.as_dict() for split, each in written.items()}
    content |= {key: text for key, text in notes.items() if text}
    (folder / METADATA).write_text(json.dumps({"partial": partial}))
    (folder / RECORD).write_text(json.dumps(content, indent=2) + "\n")
    return written


def _examples(
    source: Source, split: str, fingerprinter: Fingerprinter
) -> Iterator[tuple[int | str, dict[str, Any]]]:
    """Yield keys and features; take the fingerprint of the images on the way."""
    num_images, chunk = 0, []
    with progress.phase(f"writing {split}", source.sizes.get(split)) as going_on:
        for record in source.splits[split]():
            stopping.check()
            num_images += 1
            chunk.append(record.image)
            if len(chunk) == _chunk(record.image):
                fingerprinter.add(np.stack(chunk))
                chunk = []
            image = png.encode(record.image) if record.png is None else record.png
            yield record.key, {"image": image, **record.fields}
            going_on.advance()
    if chunk:
        fingerprinter.add(np.stack(chunk))
    check_size(source.dataset, split, num_images, partial=source.partial)


def _chunk(image: np.ndarray) -> int:
    """Return the number of such images that are hashed or read back at one time."""
    return max(1, _CHUNK_BYTES // image.nbytes)


@contextlib.contextmanager
def _disk_explained(data_dir: pathlib.Path) -> Iterator[None]:
    """Turn a full or failing disk into a TargetError, whichever library noticed it."""
    tf = on_cpu.tensorflow()
    try:
        yield
    except Exception as error:
        # TFDS wraps errors, and more than once: the first error is the deepest.
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(cause)
        for each in chain:
            if isinstance(each, SourceError | TargetError):
                raise each from None
        for each in reversed(chain):
            if isinstance(each, OSError):
                raise TargetError(explain(each, data_dir)) from error
            if isinstance(each, tf.errors.OpError):
                full = "No space left" in each.message or "quota" in each.message
                code = errno.ENOSPC if full else errno.EIO
                raise TargetError(explain(OSError(code, each.message), data_dir)) from error
        raise
