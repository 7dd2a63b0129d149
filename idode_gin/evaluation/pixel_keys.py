"""Noise of an image by its pixels, where its place in the split is not known or does not count."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer

from idode_gin import types
from idode_gin.runs.image_loop import Compute


def hashes(images: types.Pixels) -> Integer[Array, " batch"]:
    """Return a number for each image that depends on its pixels alone."""
    factors = jax.random.bits(jax.random.key(0), images.shape[1:], jnp.uint32)
    products = (images.astype(jnp.uint32) + 1) * factors
    return jnp.sum(products, axis=(1, 2, 3), dtype=jnp.uint32)


def indexed(batch: types.Batch) -> types.Batch:
    """Return the batch with the hash of every image as its `index`, which keys its noise."""
    return {**batch, "index": hashes(batch["image"])}


def by_pixels(compute: Compute) -> Compute:
    """Return the same scores with the noise of `indexed` batches."""

    def computed(params: types.Params, batch: types.Batch) -> Mapping[str, jax.Array]:
        return compute(params, indexed(batch))

    return computed
