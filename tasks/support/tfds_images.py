"""A source of images in published datasets in the format of TensorFlow Datasets."""

import shlex
from collections.abc import Sequence
from typing import final

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from idode_gin.feed import copies
from idode_gin.feed.augmentation import Augmentation
from idode_gin.feed.image_fingerprints import ImageFingerprint
from idode_gin.feed.sources import KnownSplit
from tasks.formats.published import Variant
from tasks.support.sources import AbstractImages, digest, with_static_shape
from tasks.support.tfds_files import DESCRIPTION, TfdsFiles


def tfds_data_dir(tfds_name: str) -> str:
    """Return the data directory given to seqio, or else the default of TensorFlow Datasets."""
    # A new loader each time: a loader keeps the first folder that it was asked for.
    return seqio.LazyTfdsLoader(tfds_name).data_dir or str(tfds.core.constants.DATA_DIR)


@final
class TfdsImages(AbstractImages):
    """The images of a dataset on disk, and its labels if it has any and they are asked for.

    Read by its own `features.json` and `dataset_info.json`, without the code that built it; never
    built or downloaded. Nothing is opened before images are asked for.

    Raises, when opened:
        ValueError: if the dataset or files of it are missing, or if a split has another number or
            shape of images than the published one.
    """

    def __init__(self, published: Variant, augmentation: Augmentation | None = None) -> None:
        super().__init__(tuple(published.sizes), augmentation)
        self._published = published
        self.name = published.name

    @property
    def variant(self) -> str:  # type: ignore[override]  # depends on what is on disk
        """Label of the variant; marked if only a part of it was prepared."""
        return self._published.label + (", PARTIAL" if self._files("").is_partial else "")

    def list_shards(self, split: str) -> Sequence[str]:
        """Return the paths of the split's files."""
        return [str(path) for path in self._found(split).shards()]

    def num_input_examples(self, split: str) -> int:
        """Return N."""
        return self._found(split).num_images

    def known(self, split: str) -> KnownSplit | None:
        """Return the published facts; None if prepared with `--allow_partial`."""
        return None if self._files(split).is_partial else self._published.known(split)

    def check_recorded(self, split: str, found: ImageFingerprint) -> None:
        """Raise ValueError if the files changed since `tasks.prepare` wrote them."""
        self._files(split).check_recorded(found)

    def cache_key(self, split: str) -> str:
        """Return a digest of the dataset's description and its files' names, sizes and times."""
        return digest([self._published.tfds_name, *self._found(split).facts()])

    def labels(self, split: str, num_classes: int) -> np.ndarray | None:
        """Return the class of each image, `[N]`; None if the dataset has no "label"."""
        return self._found(split).labels(num_classes)

    def class_names(self, split: str) -> list[str]:
        """Return the name of each class; empty if the dataset has no "label"."""
        return self._found(split).class_names()

    def images(
        self, split: str, *, shuffle: bool, seed: int | None, shard_info: seqio.ShardInfo | None
    ) -> tf.data.Dataset:
        """Return dicts with "image", uint8 `[H, W, C]`; `shuffle` applies to the order of files."""
        files, known = self._found(split), self.known(split)
        if known is not None:
            known.check_num_images(
                f"{split!r} of {self._published} in {files.folder}", files.num_images
            )
        dataset = files.dataset(shuffle=shuffle, seed=seed, shard_info=shard_info)
        return with_static_shape(dataset, self._published.image_shape, str(self._published))

    def _files(self, split: str) -> TfdsFiles:
        root = tfds_data_dir(self._published.tfds_name)
        return TfdsFiles(
            folder=copies.local(f"{root}/{self._published.folder}", "The TFDS data folder"),
            split=split,
            name=str(self._published),
            remedy=f"Prepare it again: python -m tasks.prepare {self.name} --overwrite ...",
        )

    def _found(self, split: str) -> TfdsFiles:
        files, published = self._files(split), self._published
        missing = [name for name in DESCRIPTION if not (files.folder / name).is_file()]
        if missing:
            root = tfds_data_dir(published.tfds_name)
            found = "is not complete" if files.folder.is_dir() else "was not found"
            raise ValueError(
                f"{published} {found} under {root!r}: there is no {files.folder / missing[0]}.\n"
                f"  1. Get {published.archives} from {published.page}\n"
                f"  2. python -m tasks.prepare {published.name} --source {published.archives} "
                f"--tfds_data_dir {shlex.quote(root)}\n"
                f"  3. Pass --tfds_data_dir {shlex.quote(root)} to the program."
            )
        return files
