"""A source of images that a function returns as arrays."""

from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np
import tensorflow as tf

from idode_gin.feed.augmentation import Augmentation
from tasks.support.sources import AbstractImages


@final
class ArrayImages(AbstractImages):
    """Images in memory, one array for each split.

    Args:
        split_sizes: number of images of each split.
        load_split: split name -> images, integers `[N, H, W, C]`.
        augmentation: of the training split, or None.
    """

    def __init__(
        self,
        split_sizes: Mapping[str, int],
        load_split: Callable[[str], np.ndarray],
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(tuple(split_sizes), augmentation, split_sizes)
        self._load_split = load_split

    def array(self, split: str) -> np.ndarray:
        """Return the images of the split."""
        return self._load_split(split)

    def images(self, split: str, **reading: Any) -> tf.data.Dataset:
        """Return the array's images; there are no files to shuffle."""
        return tf.data.Dataset.from_tensor_slices({"image": self.array(split)})
