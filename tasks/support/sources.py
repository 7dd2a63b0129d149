"""The base class of the tasks' sources of images, which marks what seqio is to augment."""

import abc
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from idode_gin.feed.augmentation import Augmentation
from idode_gin.feed.sources import ImageSource

AUGMENT = "augment"
"""Feature that marks the examples that the preprocessor `augmenting.Augment` augments."""


class AbstractImages(seqio.DataSource, ImageSource):
    """A seqio source of images, with what the feed asks for.

    If it has an augmentation, the examples of "train" are marked with `AUGMENT`; no other split is
    ever augmented. The source does not augment them itself: seqio repeats and caches what a source
    yields, so every epoch would be augmented alike.
    """

    def __init__(
        self,
        splits: Sequence[str],
        augmentation: Augmentation | None = None,
        num_input_examples: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(splits=tuple(splits), num_input_examples=num_input_examples)
        self.augmentation = augmentation

    @abc.abstractmethod
    def images(
        self, split: str, *, shuffle: bool, seed: int | None, shard_info: seqio.ShardInfo | None
    ) -> tf.data.Dataset:
        """Return dicts with "image", `[H, W, C]`; `shuffle` applies to the order of files."""

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """False."""
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        """Return one shard; seqio then distributes single images."""
        return [split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """Return the images, marked if they are to be augmented."""
        if shard_info and shard_info.num_shards > len(self.list_shards(split)):
            raise ValueError(
                f"{split!r} has {len(self.list_shards(split))} shards, got {shard_info}."
            )
        dataset = self.images(split, shuffle=shuffle, seed=seed, shard_info=shard_info)
        if self.augmentation is None or split != "train":
            return dataset
        return dataset.map(lambda example: {**example, AUGMENT: True})


def with_static_shape(
    dataset: tf.data.Dataset,
    image_shape: tuple[int | None, ...],
    name: str,
    dtypes: Sequence[tf.DType] = (tf.uint8,),
) -> tf.data.Dataset:
    """Return the same images with a shape that is known before the first is read.

    Raises:
        ValueError: if their dtype is none of `dtypes`, or their declared shape differs. If only a
            decoded image has another shape, TensorFlow raises its own error on reading it.
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


def digest(facts: Any) -> str:
    """Return a short hex digest of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
