"""Random flips, rotations and channel orders for seqio's users, in TensorFlow.

Same distribution as `idode_gin.feed.augmentation`. The project's own feed does not use it: there
an image's place and epoch decide, here the seeds that seqio passes to a preprocessor.
"""

import itertools
from collections.abc import Mapping
from typing import final

import numpy as np
import seqio
import tensorflow as tf

from idode_gin.feed.augmentation import Augmentation, channel_orders
from idode_gin.feed.sources import KeepsImages
from tasks.support.sources import AUGMENT

Example = dict[str, tf.Tensor]


@final
class Augment(KeepsImages):
    """A preprocessor that augments the examples marked by their source.

    Adds "conditioning", float32 `[K]`: zeros for examples without the mark, whose images stay
    unchanged. The same seed gives the same images in the same order; without a seed they differ
    between runs. Every epoch is augmented differently.
    """

    def __init__(self, augmentation: Augmentation) -> None:
        self._augmentation = augmentation

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return the augmented dataset; raise ValueError if its images cannot be augmented."""
        augmentation = self._augmentation

        @seqio.map_over_dataset(num_seeds=1)
        def draw(example: Mapping[str, tf.Tensor], seed: tf.Tensor) -> Example:
            return augment_example(augmentation, example["image"], seed)

        def leave(example: Mapping[str, tf.Tensor]) -> Example:
            bits = tf.zeros([augmentation.conditioning_size], tf.float32)
            return {**example, "conditioning": bits}

        if AUGMENT not in dataset.element_spec:
            return dataset.map(leave, num_parallel_calls=tf.data.AUTOTUNE)
        augmentation.check(tuple(dataset.element_spec["image"].shape))
        return draw(dataset)


def augment_example(augmentation: Augmentation, image: tf.Tensor, seed: tf.Tensor) -> Example:
    """Return one image, augmented at random, and its conditioning.

    Args:
        augmentation: the kinds that may happen.
        image: `[H, W, C]`.
        seed: two integers; they alone decide the result.
    """
    coin_seed, turns_seed, order_seed = tf.unstack(tf.random.split(seed, 3))
    orders = len(channel_orders(image.shape[2]))
    coins = _below(2, coin_seed, [len(augmentation.kinds)])
    coin_of = dict(zip(augmentation.kinds, tf.unstack(coins), strict=True))
    turns = coin_of.get("rotation", 0) * (1 + _below(3, turns_seed, []))
    order = coin_of.get("channels", 0) * _below(orders, order_seed, [])
    return {
        "image": apply(image, tf.cast(coin_of.get("flip", 0), tf.bool), turns, order),
        "conditioning": _bits(augmentation, coins),
    }


def apply(image: tf.Tensor, flip: tf.Tensor, turns: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
    """Return one augmented image `[H, W, C]`; arguments as in `idode_gin.feed.augmentation.Codes`.

    Args:
        image: `[H, W, C]`; square if it is turned.
        flip: bool, mirrored left to right.
        turns: 0 ... 3 quarter turns, counter-clockwise.
        order: place in `channel_orders(C)`; 0 keeps the order.
    """
    shape = image.shape
    image = tf.where(flip, tf.reverse(image, [1]), image)
    image = tf.image.rot90(image, turns)
    image = tf.gather(image, tf.gather(tf.constant(channel_orders(shape[2])), order), axis=2)
    return tf.ensure_shape(image, shape)


def _below(end: int, seed: tf.Tensor, shape: list[int]) -> tf.Tensor:
    return tf.random.stateless_uniform(shape, seed, minval=0, maxval=end, dtype=tf.int32)


def _bits(augmentation: Augmentation, coins: tf.Tensor) -> tf.Tensor:
    """Return the conditioning of these coins, from a table of the NumPy function's results."""
    kinds = len(augmentation.kinds)
    every = np.array(list(itertools.product((False, True), repeat=kinds)))
    row = tf.reduce_sum(coins * 2 ** np.arange(kinds - 1, -1, -1, dtype=np.int32))
    return tf.gather(tf.constant(augmentation.bits(every), tf.float32), row)
