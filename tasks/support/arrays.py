"""A source of images that are arrays."""

from collections.abc import Callable, Mapping
from typing import Self, final

import numpy as np
import seqio
import tensorflow as tf


@final
class ArrayImages(seqio.FunctionDataSource):
    """Images that a function returns, one array for each split.

    Args:
        split_sizes: how many images each split holds.
        load_split: split name -> images, integers `[N, H, W, C]`.
    """

    augmentation = None

    def __init__(
        self, split_sizes: Mapping[str, int], load_split: Callable[[str], np.ndarray]
    ) -> None:
        def dataset_fn(
            split: str, shuffle_files: bool = False, seed: int | None = None
        ) -> tf.data.Dataset:
            del shuffle_files, seed  # one array: there are no files whose order could change
            return tf.data.Dataset.from_tensor_slices({"image": load_split(split)})

        super().__init__(
            dataset_fn, splits=tuple(split_sizes), num_input_examples=dict(split_sizes)
        )
        self._load_split = load_split

    @property
    def plain(self) -> Self:
        """Itself."""
        return self

    def array(self, split: str) -> np.ndarray:
        """The split's images."""
        return self._load_split(split)
