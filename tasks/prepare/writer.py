"""Records to TFDS's files, by TFDS's own writer: names, order and shards are those it would choose.

The only module here that knows TFDS; it is imported when something is written.
"""

import contextlib
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from idode_gin.feed.image_fingerprints import Fingerprinter, ImageFingerprint
from tasks.prepare import png, tfrecords
from tasks.prepare.progress import Progress
from tasks.prepare.records import Record, Source, check_size
from tasks.prepare.refusals import SourceError, TargetError
from tasks.prepare.targets import explain
from tasks.prepare.tfrecords import ReadySource

FINGERPRINT = "fingerprint.json"
"""Beside the shards: split -> `ImageFingerprint`, compared with whenever the dataset is opened."""
METADATA = "metadata.json"
_CHUNK = 1024  # images hashed or read back at one time


def write(source: Source, data_dir: pathlib.Path) -> dict[str, ImageFingerprint]:
    """Writes a dataset below `data_dir`, reads it back, and adds its fingerprint.

    Returns:
        per split, the fingerprint of the images in their order on disk.

    Raises:
        SourceError: when a record is no good, or a split is not whole.
        TargetError: when the disk is full or fails.
    """
    tfds = _tfds()
    read: dict[str, Fingerprinter] = {}

    def examples(split: str) -> Iterator[tuple[int | str, dict[str, Any]]]:
        read[split] = fingerprinter = Fingerprinter()
        total = None if source.partial else source.sizes[split]
        with Progress(f"writing {split}", total) as progress:
            for record in _fingerprinted(source.splits[split](), fingerprinter, progress):
                image = png.encode(record.image) if record.png is None else record.png
                yield record.key, {"image": image, **record.fields}
        num_images = fingerprinter.result().num_images if progress.done else 0
        check_size(source.dataset, split, num_images, partial=source.partial)

    builder = _builder(tfds, source, data_dir, examples)
    with _disk_explained(data_dir):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    written = read_back(pathlib.Path(builder.data_dir))
    for split, fingerprinter in read.items():
        if fingerprinter.result().content_sha256 != written[split].content_sha256:
            raise TargetError(
                f"Split {split!r} reads back with other pixels than were written: the disk below "
                f"{data_dir} or the memory of this machine is faulty."
            )
    _write_fingerprint(pathlib.Path(builder.data_dir), written)
    return written


def copy(source: ReadySource, data_dir: pathlib.Path) -> dict[str, ImageFingerprint]:
    """Copies a ready dataset below `data_dir` once all of it is checked; see `write`."""
    total = sum(source.sizes.values())
    with Progress("checking", total) as progress:
        for done in source.check_records():
            if done % _CHUNK == 0:
                progress.add(_CHUNK)
        progress.add(total % _CHUNK)
    folder = data_dir / source.dataset.folder
    with _disk_explained(data_dir):
        folder.mkdir(parents=True)
        names = [name for shards in source.shards.values() for name in shards]
        # Not features.json, which names classes to import, nor what says what is partial.
        texts = [name for name in source.texts if name not in (tfrecords.FEATURES, METADATA)]
        for name in [*names, *texts]:
            shutil.copyfile(source.folder / name, folder / name)
        tfds = _tfds()
        image = tfds.features.Image(shape=source.dataset.image_shape, encoding_format="png")
        tfds.features.FeaturesDict({"image": image}).save_config(folder)
        (folder / METADATA).write_text(json.dumps({"partial": source.partial}))
    written = read_back(folder, source.folder)
    for fingerprint in written.values():
        if fingerprint.image_shape != source.dataset.image_shape:
            raise SourceError(f"{source.folder} decodes to {fingerprint.image_shape} images.")
    _write_fingerprint(folder, written)
    return written


def read_back(
    folder: pathlib.Path, source: pathlib.Path | None = None
) -> dict[str, ImageFingerprint]:
    """Fingerprints of a dataset on disk, its shards read one after the other.

    Args:
        folder: where it lies.
        source: what it is a copy of, for messages.

    Raises:
        SourceError: if its description or a record is damaged.
    """
    tfds = _tfds()
    import tensorflow as tf

    named = source or folder
    with _parsed(named):
        builder = tfds.builder_from_directory(str(folder))
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    written = {}
    for split, info in builder.info.splits.items():
        fingerprinter = Fingerprinter()
        with _parsed(named):
            dataset = builder.as_dataset(
                split=split,
                read_config=config,
                decoders=tfds.decode.PartialDecoding({"image": True}),
            )
        dataset = dataset.map(lambda example: example["image"]).batch(_CHUNK).prefetch(2)
        try:
            with Progress(f"reading back {split}", info.num_examples) as progress:
                for images in dataset.as_numpy_iterator():
                    fingerprinter.add(images)
                    progress.add(len(images))
        except tf.errors.OpError as error:
            raise SourceError(f"{named}, split {split!r}, is damaged: {error.message}") from error
        written[split] = fingerprinter.result()
        if written[split].num_images != info.num_examples:
            raise SourceError(
                f"{named}, split {split!r}, must have {info.num_examples:,} images, and has "
                f"{written[split].num_images:,}."
            )
    return written


@contextlib.contextmanager
def _parsed(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever TFDS's parsers make of a damaged description
        path, reason = folder / tfrecords.INFO, str(error).strip()[:300]
        raise SourceError(f"{path} is damaged: {reason}. Copy the folder again.") from error


def _fingerprinted(
    records: Iterator[Record], fingerprinter: Fingerprinter, progress: Progress
) -> Iterator[Record]:
    chunk: list[np.ndarray] = []
    for record in records:
        chunk.append(record.image)
        if len(chunk) == _CHUNK:
            fingerprinter.add(np.stack(chunk))
            progress.add(len(chunk))
            chunk = []
        yield record
    if chunk:
        fingerprinter.add(np.stack(chunk))
        progress.add(len(chunk))


def _builder(
    tfds: Any,
    source: Source,
    data_dir: pathlib.Path,
    examples: Callable[[str], Iterator[tuple[int | str, dict[str, Any]]]],
) -> Any:
    dataset = source.dataset

    class Prepared(  # type: ignore[call-arg]
        tfds.core.GeneratorBasedBuilder, skip_registration=True
    ):
        name = dataset.name
        VERSION = tfds.core.Version(dataset.version)
        BUILDER_CONFIGS = (  # noqa: RUF012
            [tfds.core.BuilderConfig(name=dataset.config, version=VERSION)]
            if dataset.config
            else []
        )
        url_infos = None  # nothing is downloaded, so there are no checksums to look for

        def _info(self) -> Any:
            image = tfds.features.Image(shape=source.image_shape, encoding_format="png")
            features = {"image": image}
            if source.label_names:
                features["id"] = tfds.features.Text()
                features["label"] = tfds.features.ClassLabel(names=source.label_names)
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{dataset.title}, prepared from {dataset.sources}.",
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=source.in_order,
                metadata=tfds.core.MetadataDict(partial=source.partial),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
            return {split: examples(split) for split in source.splits}

        def _generate_examples(self) -> Iterator[Any]:
            raise NotImplementedError

        def _log_download_bytes(self) -> None:
            """Says nothing: nothing is downloaded."""

        def _log_download_done(self) -> None:
            """Says nothing: the dataset is not in its place yet."""

    return Prepared(data_dir=str(data_dir), config=dataset.config)


def _write_fingerprint(folder: pathlib.Path, fingerprints: Mapping[str, ImageFingerprint]) -> None:
    content = {split: each.as_dict() for split, each in fingerprints.items()}
    with _disk_explained(folder):
        (folder / FINGERPRINT).write_text(json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def _disk_explained(data_dir: pathlib.Path) -> Iterator[None]:
    """Turns a full or failing disk into a TargetError, whoever noticed it."""
    import tensorflow as tf

    try:
        yield
    except Exception as error:
        # TFDS wraps what it meets, and more than once: the first error is the deepest.
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(cause)
        for each in reversed(chain):
            if isinstance(each, SourceError | TargetError):
                raise each from None
            if isinstance(each, OSError):
                raise TargetError(explain(each, data_dir)) from error
            if isinstance(each, tf.errors.OpError):
                full = "No space left" in each.message or "quota" in each.message
                code = errno.ENOSPC if full else errno.EIO
                raise TargetError(explain(OSError(code, each.message), data_dir)) from error
        raise


def _tfds() -> Any:
    # Both print lines about devices that nobody here needs.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    return tfds
