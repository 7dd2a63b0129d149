"""The contract between the feed and a task's source of images."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, final, runtime_checkable

import numpy as np

from idode_gin.feed.augmentation import Augmentation
from idode_gin.feed.image_fingerprints import ImageFingerprint

ChannelMean = tuple[float, ...]


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownSplit:
    """Published facts about a split.

    Attributes:
        num_images: N.
        image_shape: (H, W, C).
        channel_mean: mean pixel of each channel, in levels; None if unknown.
        channel_mean_tolerance: largest allowed difference from it, in levels.
        lookalikes: number of images -> name of the dataset of that size that is easily mistaken
            for this one.
    """

    num_images: int
    image_shape: tuple[int, int, int]
    channel_mean: ChannelMean | None = None
    channel_mean_tolerance: float = 0.0
    lookalikes: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def check_num_images(self, what: str, num_images: int) -> None:
        """Raise ValueError, naming `what`, unless it has the known number of images."""
        if num_images == self.num_images:
            return
        other = self.lookalikes.get(num_images)
        raise ValueError(
            f"{what} must hold {self.num_images:,} images, got {num_images:,}. "
            + (f"{num_images:,} images are those of {other}." if other else "Prepare it again.")
        )

    def check(self, what: str, found: ImageFingerprint) -> None:
        """Raise ValueError, naming `what`, unless number, shape and mean of its images match."""
        self.check_num_images(what, found.num_images)
        if found.image_shape != self.image_shape:
            raise ValueError(
                f"Images of {what} must be {self.image_shape}, got {found.image_shape}."
            )
        if self.channel_mean is None:
            return
        difference = np.abs(np.subtract(self.channel_mean, found.channel_mean)).max()
        if difference > self.channel_mean_tolerance:
            raise ValueError(
                f"{what} must have channel means of {_numbers(self.channel_mean)}, got "
                f"{_numbers(found.channel_mean)}. These are other pixels: prepare the dataset "
                "again from the publisher's own files."
            )


@runtime_checkable
class ImageSource(Protocol):
    """A seqio data source whose images the feed reads without running the task.

    Inherit from it, after seqio's class, and override what applies. The feed reads other sources
    through their task.
    """

    name: str = ""
    """Name of the images in the cache, shared by tasks over the same ones; "": the task's name."""
    variant: str = ""
    """Published variant of the dataset, in words; "" if there is only one."""
    augmentation: Augmentation | None = None
    """Augmentation of the training split."""

    def get_dataset(self, split: str, shuffle: bool = True) -> Any:
        """Return a `tf.data.Dataset` of dicts; the feed reads "image", integers `[H, W, C]`."""
        raise NotImplementedError

    def num_input_examples(self, split: str) -> int | None:
        """Return N, or None if it is unknown before the images are read."""
        return None

    def at(self, path: str) -> "ImageSource | None":
        """Return the same source over the user's files at `path`; None if it reads no files."""
        return None

    def array(self, split: str) -> np.ndarray | None:
        """Return the split as one array `[N, H, W, C]` if it is stored as one, else None."""
        return None

    def cache_key(self, split: str) -> str | None:
        """Return a hex digest of the split's files; None if the split must not be cached."""
        return None

    def labels(self, split: str, num_classes: int) -> np.ndarray | None:
        """Return the class of each image, integers `[N]` in the images' order; None without labels.

        Raises:
            ValueError: if the classes are known to be another number.
        """
        return None

    def check_there(self, split: str) -> None:
        """Raise ValueError if a user's own files of the split are missing; decodes nothing."""
        return None

    def class_names(self, split: str) -> Sequence[str]:
        """Return the name of each class, in the order of their numbers; empty if they have none."""
        return ()

    def known(self, split: str) -> KnownSplit | None:
        """Return published facts about the split, if there are any."""
        return None

    def check_recorded(self, split: str, found: ImageFingerprint) -> None:
        """Raise ValueError if the decoded split differs from what its files record."""
        return None


class KeepsImages:
    """Base class of preprocessors that the feed may skip.

    They leave images unchanged, or augment them, which the feed does itself.
    """


def _numbers(values: ChannelMean) -> str:
    return ", ".join(f"{each:.3f}" for each in values)
