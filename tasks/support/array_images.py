"""A source of images that a function returns as arrays."""

from collections.abc import Callable, Mapping, Sequence
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
        load_labels: split name -> class of each image, integers `[N]`; None: there are no labels.
        augmentation: of the training split, or None.
        class_names: name of each class, by its number; empty if they have none.
    """

    def __init__(
        self,
        split_sizes: Mapping[str, int],
        load_split: Callable[[str], np.ndarray],
        load_labels: Callable[[str], np.ndarray] | None = None,
        augmentation: Augmentation | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__(tuple(split_sizes), augmentation, split_sizes)
        self._load_split, self._load_labels = load_split, load_labels
        self._class_names = class_names

    def array(self, split: str) -> np.ndarray:
        """Return the images of the split; raise ValueError if their number is not as declared."""
        found, declared = self._load_split(split), self.num_input_examples(split)
        if declared is not None and len(found) != declared:
            raise ValueError(
                f"The split {split!r} must have {declared} images, as it was registered, got "
                f"{len(found)}."
            )
        return found

    def labels(self, split: str, num_classes: int) -> np.ndarray | None:
        """Return the class of each image, `[N]`; None without labels."""
        return None if self._load_labels is None else self._load_labels(split)

    def class_names(self, split: str) -> Sequence[str]:
        """Return the name of each class."""
        return self._class_names

    def images(self, split: str, **reading: Any) -> tf.data.Dataset:
        """Return the array's images; there are no files to shuffle."""
        return tf.data.Dataset.from_tensor_slices({"image": self.array(split)})
