"""Random flips, rotations and channel orders for seqio's users, in TensorFlow.

Means what `idode_gin.feed.augmentation` means, whose own feed it does not serve: there an image
is augmented by its place and epoch, here by the seeds that seqio hands to a preprocessor.
"""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import seqio
import tensorflow as tf

from idode_gin.feed.augmentation import Augmentation, channel_orders
from tasks.support.sources import AUGMENT

Example = dict[str, tf.Tensor]


def augment(augmentation: Augmentation) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """A task's preprocessor, which augments the examples that `AugmentedSource` has marked.

    Adds "conditioning", float32 `[K]`: zeros where examples are not marked, and those are left as
    they are. The same seed gives the same images in the same order; without one they differ from
    run to run. Every epoch is augmented anew.
    """

    @seqio.map_over_dataset(num_seeds=1)
    def draw(example: Mapping[str, tf.Tensor], seed: tf.Tensor) -> Example:
        return augment_example(augmentation, example["image"], seed)

    def leave(example: Mapping[str, tf.Tensor]) -> Example:
        bits = tf.zeros([augmentation.conditioning_size], tf.float32)
        return {**example, "conditioning": bits}

    def preprocess(dataset: tf.data.Dataset) -> tf.data.Dataset:
        if AUGMENT not in dataset.element_spec:
            return dataset.map(leave, num_parallel_calls=tf.data.AUTOTUNE)
        augmentation.check(tuple(dataset.element_spec["image"].shape))
        return draw(dataset)

    return preprocess


def augment_example(augmentation: Augmentation, image: tf.Tensor, seed: tf.Tensor) -> Example:
    """Draws what happens to one image, and does it.

    Args:
        augmentation: which kinds may happen.
        image: `[H, W, C]`.
        seed: two integers: all that the result depends on.
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
    """One augmented image `[H, W, C]`: the codes of `idode_gin.feed.augmentation.Codes`.

    Args:
        image: `[H, W, C]`; square if it is turned.
        flip: bool, mirrored left to right.
        turns: 0 ... 3 quarter turns, counter-clockwise.
        order: place in `channel_orders(C)`; 0 leaves the channels alone.
    """
    shape = image.shape
    image = tf.where(flip, tf.reverse(image, [1]), image)
    image = tf.image.rot90(image, turns)
    image = tf.gather(image, tf.gather(tf.constant(channel_orders(shape[2])), order), axis=2)
    return tf.ensure_shape(image, shape)


def _below(end: int, seed: tf.Tensor, shape: list[int]) -> tf.Tensor:
    return tf.random.stateless_uniform(shape, seed, minval=0, maxval=end, dtype=tf.int32)


def _bits(augmentation: Augmentation, coins: tf.Tensor) -> tf.Tensor:
    """What the augmentation's own NumPy function says of these coins, from a table of them all."""
    kinds = len(augmentation.kinds)
    every = np.array(list(itertools.product((False, True), repeat=kinds)))
    row = tf.reduce_sum(coins * 2 ** np.arange(kinds - 1, -1, -1, dtype=np.int32))
    return tf.gather(tf.constant(augmentation.bits(every), tf.float32), row)
