"""Configuration of a dataset, and the split that it selects.

`loading` reads splits, `batches` makes batches of them.
"""

import dataclasses
import functools
import hashlib
from typing import Any, final

import numpy as np

from idode_gin import checks
from idode_gin.feed import image_fingerprints, labels
from idode_gin.feed.augmentation import Augmentation
from idode_gin.feed.image_fingerprints import ImageFingerprint
from idode_gin.reports.paths import LocalPath, StoredPath

Batch = dict[str, np.ndarray]

DIGITS = 16
"""Fewest hex digits of a fingerprint that identify it."""
_AT_ONCE = 1024
"""Images that are searched at a time."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Selects the images and their order. The names are t5x's.

    Attributes:
      mixture_or_task_name: a registered seqio task, or a mixture (see `load_split`).
      split: one of its splits, such as "train".
      batch_size: images per global batch, over all devices and hosts.
      shuffle: a new permutation each epoch; otherwise the split's own order, repeated.
      seed: of the permutations and augmentations.
      use_cached: read seqio's offline cache of the task, from a folder given to `set_data_dirs`.
      module: module that registers the task when imported; None is this repository's `tasks`.
      data_path: path of the user's own images, for tasks that read them (`image_folder`); what is
        in a bucket is copied to this machine first.
      augmentation: of training batches; None uses the task's own.
      cache_dir: folder for decoded images; None is `image_cache.default_directory()`, "" keeps
        them in memory only.
      memory_map: page cached images in from disk as they are used, shared by all processes of a
        machine. False reads them whole at the start, which suits slow network disks.
      num_images: how many images of the split to use, spread evenly over it; None, or more than it
        has, uses all.
      fingerprint: required `sha256` or `content_sha256` of the images used, as in any result, or at
        least its first 16 digits; None accepts any.

    Raises:
      ValueError: for a batch size or number of images below one, a negative seed, a value of one of
        them that is not an integer, or a malformed fingerprint.
    """

    mixture_or_task_name: str
    split: str
    batch_size: int
    shuffle: bool = True
    seed: int = 0
    use_cached: bool = False
    module: str | None = None
    data_path: StoredPath | None = None
    augmentation: Augmentation | None = None
    cache_dir: LocalPath | None = None
    memory_map: bool = True
    num_images: int | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        checks.check_integer("batch_size", self.batch_size, at_least=1)
        if self.num_images is not None:
            checks.check_integer("num_images", self.num_images, at_least=1)
        checks.check_integer("seed", self.seed, at_least=0)
        given = self.fingerprint
        if given is not None and (len(given) < DIGITS or set(given) - set("0123456789abcdef")):
            raise ValueError(
                f"`fingerprint` must be at least {DIGITS} lowercase hex digits of a result's "
                f"`sha256` or `content_sha256`, got {given!r}."
            )


@final
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSplit:
    """One split of one dataset, or some of its images, in its own order, in memory or mapped.

    Attributes:
      images: integers `[N, H, W, C]`.
      conditioning: float32 `[N, K]`, of images without augmentation.
      name: the task or mixture it came from.
      split: the split's name.
      variant: published variant of the dataset, in words; "" if there is only one.
      augmentation: of training batches, or None.
      known_fingerprint: of the images, if already computed.
      labels: class of each image, integers `[N]`, if the network is conditioned on it.
      num_classes: C; 0 without labels.
      class_names: name of each class, C of them; empty if they have none.
      whole: number of images of the whole split, if these are only some of them (see `some`).

    Raises:
      ValueError: if there are no images, they are not integers of rank 4, the conditioning is not
        one finite row per image, or the labels are not one class per image.
    """

    images: np.ndarray
    conditioning: np.ndarray
    name: str
    split: str
    variant: str = ""
    augmentation: Augmentation | None = None
    known_fingerprint: ImageFingerprint | None = None
    labels: np.ndarray | None = None
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    whole: int | None = None

    def __post_init__(self) -> None:
        images, rows = self.images, self.conditioning
        if images.ndim != 4 or images.dtype.kind not in "iu":
            raise ValueError(
                f"{self} must hold integer images [N, H, W, C], got {images.dtype} "
                f"{list(images.shape)}. Leave pixels as integers in 0..V-1, with a channel axis: "
                f"the model does the scaling.{checks.integers_hint(images)}"
            )
        if images.size == 0:
            raise ValueError(f"{self} holds no pixels: its images are {list(images.shape)}.")
        if rows.ndim != 2 or len(rows) != len(images) or not np.isfinite(rows).all():
            raise ValueError(
                f"{self} must hold one finite conditioning row [K] per image, got "
                f"{list(rows.shape)} for {len(images)} images."
            )
        if self.num_classes:
            names = self.class_names
            given = labels.check(self.labels, self.num_classes, len(images), str(self), names)
            object.__setattr__(self, "labels", given)

    def __str__(self) -> str:
        return f"Split {self.split!r} of {self.name!r}"

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.images)

    @property
    def how_many(self) -> str:
        """N, and of how many if these are only some, such as `100 of 300`."""
        return f"{self.num_images}" if self.whole is None else f"{self.num_images} of {self.whole}"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def place_of(self, index: np.ndarray) -> np.ndarray:
        """Return the places in the whole split of the images at `index`, integers `[...]`."""
        return index if self.whole is None else spread(self.num_images, self.whole)[index]

    def some(self, num_images: int) -> "ImageSplit":
        """Return so many of the images, spread evenly, or all if there are no more.

        Each keeps its place, and so its noise: it scores as it does among all.
        """
        if num_images >= self.num_images:
            return self
        chosen = spread(num_images, self.num_images)
        return dataclasses.replace(
            self,
            images=self.images[chosen],
            conditioning=self.conditioning[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            known_fingerprint=None,
            whole=self.num_images,
        )

    @functools.cached_property
    def fingerprint(self) -> ImageFingerprint:
        """Fingerprint of the images: equal on two hosts that loaded the same ones."""
        return self.known_fingerprint or image_fingerprints.fingerprint(self.images)

    def conditioning_of(self, index: np.ndarray, bits: np.ndarray | None = None) -> np.ndarray:
        """Return what a network is conditioned on for the images at `index`, `[..., K + C]`.

        `bits` `[..., K]` replace the conditioning; one number for each class follows.
        """
        rows = self.conditioning[index] if bits is None else bits
        if self.labels is None:
            return rows
        return labels.joined(rows, self.labels[index], self.num_classes)

    @property
    def classes(self) -> str:
        """The classes as a line to print, such as `Classes: 0 cat, 1 dog.`; "" without labels."""
        named = labels.listed(self.num_classes, self.class_names)
        return f"Classes: {named}." if self.num_classes else ""

    def label_facts(self) -> dict[str, Any]:
        """Return number, names and digest of the classes and labels; nothing without labels."""
        if self.labels is None:
            return {}
        digest = hashlib.sha256(self.labels.astype("<i4").tobytes()).hexdigest()
        found = {"num_classes": self.num_classes, "labels_sha256": digest}
        return found | ({"class_names": list(self.class_names)} if self.class_names else {})

    def part_facts(self) -> dict[str, Any]:
        """Return the number of images of the whole split if these are only some of them."""
        return {} if self.whole is None else {"whole_split": self.whole}

    def facts(self) -> dict[str, Any]:
        """Return dataset, variant, split and fingerprint for result files, as JSON values."""
        return {
            "dataset": self.name,
            "variant": self.variant,
            "split": self.split,
            **self.part_facts(),
            **self.fingerprint.as_dict(),
            **self.label_facts(),
        }


def spread(num_images: int, total: int) -> np.ndarray:
    """Return places of `num_images` of `total` images, spread evenly, rising, integers `[n]`.

    The first and the last are among them; all of them if there are no more.
    """
    return np.linspace(0, total - 1, min(num_images, total)).round().astype(np.int64)


def _first_beyond(images: np.ndarray, levels: int) -> list[int]:
    """Return the place of the first pixel outside `0..levels-1`, a few images at a time."""
    for start in range(0, len(images), _AT_ONCE):
        some = np.asarray(images[start : start + _AT_ONCE])
        if len(found := np.argwhere((some < 0) | (some >= levels))):
            index, *place = found[0].tolist()
            return [start + index, *place]
    raise AssertionError("there is such a pixel")


def check_images(split: ImageSplit, levels: int) -> None:
    """Raise ValueError, naming the first bad pixel, unless all pixels are in `0..levels-1`."""
    checks.check_integer("levels", levels, at_least=2)
    smallest, largest = split.fingerprint.pixel_range
    if smallest >= 0 and largest < levels:
        return
    index, *place = _first_beyond(split.images, levels)
    raise ValueError(
        f"{split} must hold integers in 0..{levels - 1}, because levels={levels}, but image "
        f"{index} has {split.images[(index, *place)]} at (row, column, channel) {tuple(place)}, "
        f"and all values lie in {smallest}..{largest}. Set the levels to the dataset's own."
    )


def narrowed(images: np.ndarray) -> np.ndarray:
    """Return integers as int32, the devices' type; uint8 and other dtypes unchanged.

    Raises:
        ValueError: if a value does not fit int32.
    """
    if images.dtype.kind not in "iu" or images.dtype in (np.uint8, np.int32):
        return images
    narrow = images.astype(np.int32)
    if not np.array_equal(narrow, images):
        raise ValueError(
            f"Pixels must be integers in 0..V-1, held by int32, got {images.dtype} between "
            f"{images.min()} and {images.max()}. Map them to 0..V-1 in the task's preprocessors."
        )
    return narrow
