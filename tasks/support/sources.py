"""seqio data sources of images, which say what they read and whether it is what was meant.

Beside seqio's own contract a source of images may have

    plain                           the source that yields the images as they are
    array(split)                    the split as one array, or None where it is not kept as one
    augmentation                    `Augmentation` of the training split, or None
    variant                         which of the published variants, in words
    cache_key(split)                hex digest of the bytes on disk, or None where unknown
    known(split)                    what the split must hold, a dict, or None
    check_recorded(split, found)    ValueError unless `found`, the fingerprint of the decoded split,
                                    is what was recorded when the files were made
    other_variants(num_images, split)   a sentence if another variant has so many images
    at(path)                        the same source, reading the user's files at `path`
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, final

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from idode_gin.feed.augmentation import Augmentation
from idode_gin.feed.image_fingerprints import ImageFingerprint
from tasks.support import variants
from tasks.support.tfds_files import DESCRIPTION, TfdsFiles

AUGMENT = "augment"
"""Feature that marks the examples of a split that is augmented."""


def tfds_data_dir(tfds_name: str) -> str:
    """Where TensorFlow Datasets are: as given to seqio, else as TFDS itself would look."""
    # A new loader each time: one remembers the folder that it was first asked for.
    return seqio.LazyTfdsLoader(tfds_name).data_dir or str(tfds.core.constants.DATA_DIR)


def digest(facts: Any) -> str:
    """Short hex digest of anything JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


@final
class TfdsImages(seqio.DataSource):
    """The images of a dataset on disk in the format of TensorFlow Datasets; nothing else of it.

    It is read from its own `features.json` and `dataset_info.json`, without the code that built
    it, and never built or downloaded. Nothing is opened before images are asked for.

    Raises, when opened:
        ValueError: if there is no such dataset, if files of it are missing, and if a split does
            not hold the number and shape of images that it is known for.
    """

    def __init__(self, described: variants.Variant) -> None:
        super().__init__(splits=tuple(described.splits))
        self._described = described
        self.augmentation = None

    @property
    def plain(self) -> "TfdsImages":
        """Itself."""
        return self

    @property
    def name(self) -> str:
        """Of the dataset: what all tasks over it have in common."""
        return self._described.name

    @property
    def variant(self) -> str:
        """Whose images these are."""
        return self._described.label + (", PARTIAL" if self._files("").is_partial else "")

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """No: by file."""
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        """Paths of the split's files."""
        return [str(path) for path in self._found(split).shards()]

    def num_input_examples(self, split: str) -> int:
        """N."""
        return self._found(split).num_images

    def known(self, split: str) -> dict[str, Any] | None:
        """What the split must hold; nothing, where `--allow_partial` has prepared it."""
        return None if self._files(split).is_partial else self._described.known(split)

    def check_recorded(self, split: str, found: ImageFingerprint) -> None:
        """Raises ValueError if the files changed since `tasks.prepare` has written them."""
        self._files(split).check_recorded(found)

    def other_variants(self, num_images: int, split: str) -> str | None:
        """A sentence that names the other variants with so many images."""
        return variants.other_variants(self._described, num_images, split)

    def cache_key(self, split: str) -> str:
        """Digest of the dataset's description and of its files' names and sizes."""
        return digest([self._described.tfds_name, *self._found(split).facts()])

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """Dicts with "image", uint8 `[H, W, C]`; `shuffle` concerns the order of the files."""
        files = self._found(split)
        self._check_count(files)
        dataset = files.dataset(shuffle=shuffle, seed=seed, shard_info=shard_info)
        return with_static_shape(dataset, self._described.image_shape, str(self))

    def _files(self, split: str) -> TfdsFiles:
        root = tfds_data_dir(self._described.tfds_name)
        return TfdsFiles(
            folder=pathlib.Path(root, self._described.folder).expanduser(),
            split=split,
            name=str(self),
            remedy=(
                f"Prepare it again: python -m tasks.prepare {self._described.name} --overwrite ..."
            ),
        )

    def _found(self, split: str) -> TfdsFiles:
        files, described = self._files(split), self._described
        missing = [name for name in DESCRIPTION if not (files.folder / name).is_file()]
        if missing:
            root = tfds_data_dir(described.tfds_name)
            found = "is not complete" if files.folder.is_dir() else "was not found"
            raise ValueError(
                f"{self} {found} under {root!r}: there is no {files.folder / missing[0]}.\n"
                f"  1. Get {described.archives} from {described.page}\n"
                f"  2. python -m tasks.prepare {described.name} --source {described.archives} "
                f"--tfds_data_dir {root}\n"
                f"  3. Pass --tfds_data_dir {root} to the program."
            )
        return files

    def _check_count(self, files: TfdsFiles) -> None:
        known, found = self.known(files.split), files.num_images
        if known is None or known["num_images"] == found:
            return
        raise ValueError(
            f"{files.split!r} of {self} must hold {known['num_images']:,} images, but "
            f"{files.folder} holds {found:,}. "
            f"{self.other_variants(found, files.split) or 'No published variant holds so many.'}"
        )

    def __str__(self) -> str:
        return f"{self._described.name} ({self._described.label})"


@final
class AugmentedSource(seqio.DataSource):
    """Another source, whose split "train" is to be augmented; no other split ever is.

    It only marks the examples: drawing comes later, in the task's preprocessor
    `augmenting.augment`, for seqio repeats, and keeps in memory, what a source yields. An epoch
    would otherwise be augmented like the one before it.
    """

    def __init__(self, plain: seqio.DataSource, augmentation: Augmentation) -> None:
        super().__init__(splits=tuple(plain.splits))
        self.plain = plain
        self.augmentation = augmentation

    @property
    def variant(self) -> str:
        """Whose images these are."""
        return str(getattr(self.plain, "variant", ""))

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """As the plain source."""
        return bool(self.plain.supports_arbitrary_sharding)

    def list_shards(self, split: str) -> Sequence[str]:
        """Those of the plain source."""
        return self.plain.list_shards(split)

    def num_input_examples(self, split: str) -> int | None:
        """N."""
        return self.plain.num_input_examples(split)

    def known(self, split: str) -> dict[str, Any] | None:
        """What the split must hold, before augmentation."""
        return self.plain.known(split) if hasattr(self.plain, "known") else None

    def other_variants(self, num_images: int, split: str) -> str | None:
        """A sentence that names the other variants with so many images."""
        if not hasattr(self.plain, "other_variants"):
            return None
        return self.plain.other_variants(num_images, split)

    def cache_key(self, split: str) -> str | None:
        """Of the plain images."""
        return self.plain.cache_key(split) if hasattr(self.plain, "cache_key") else None

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """The plain examples; those of "train" are marked with `AUGMENT`."""
        dataset = self.plain.get_dataset(
            split=split, shuffle=shuffle, seed=seed, shard_info=shard_info
        )
        if split != "train":
            return dataset
        return dataset.map(lambda example: {**example, AUGMENT: True})


def with_static_shape(
    dataset: tf.data.Dataset,
    image_shape: tuple[int | None, ...],
    name: str,
    dtypes: Sequence[tf.DType] = (tf.uint8,),
) -> tf.data.Dataset:
    """The same images, of a shape that is known before the first is read.

    Raises:
        ValueError: if they are of none of the `dtypes`, or are known to have another shape. An
            image that turns out to have another is an error of TensorFlow's, when it is read.
    """
    spec = dataset.element_spec["image"]
    if spec.dtype not in dtypes or not spec.shape.is_compatible_with(image_shape):
        raise ValueError(
            f"Images of {name} must be {' or '.join(each.name for each in dtypes)} "
            f"{list(image_shape)}, got {spec.dtype.name} {spec.shape}."
        )
    return dataset.map(
        lambda example: {"image": tf.ensure_shape(example["image"], image_shape)},
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def file_facts(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
