"""Small numerical functions used by all layers of the maths."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float, Shaped

from idode_gin import types


def expand(per_example: Shaped[Array, " batch"], like: Array) -> Array:
    """Append unit axes to `[B]` so that it broadcasts against `[B, ...]`."""
    return per_example.reshape(per_example.shape + (1,) * (like.ndim - per_example.ndim))


def sum_pixels(values: Array) -> types.PerExample:
    """Sum over all axes but the first: `[B, ...] -> [B]`."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def number(value: types.GammaEnd, name: str) -> float:
    """Return a quantity that a solver must know before it is compiled.

    Raises:
        ValueError: if it is an argument of the function that is compiled.
    """
    if isinstance(value, jax.core.Tracer):
        raise ValueError(
            f"`{name}` must be a number where an ODE is solved, but it depends on parameters that "
            "are arguments here. Use `model.at(params)` outside of the compiled function."
        )
    return float(value)


def known(value: Array | np.ndarray | float) -> Array | np.ndarray:
    """Return a NumPy array, or the tracer itself while a function is compiled."""
    return value if isinstance(value, jax.core.Tracer) else np.asarray(value)


def num_dims(values: Array) -> int:
    """Return the number of values d of one example of `[B, ...]`."""
    return math.prod(values.shape[1:])


def coarse_products() -> str | None:
    """Describe float32 products if the backend rounds their factors first, else return None.

    Accelerators do so unless `jax_default_matmul_precision` forbids it: a GPU to TensorFloat-32
    (10 bits of mantissa), a TPU to bfloat16 (7).
    """
    exact = jax.config.jax_default_matmul_precision in ("highest", "float32")  # type: ignore[attr-defined]
    if exact or jax.config.jax_enable_x64 or jax.default_backend() == "cpu":  # type: ignore[attr-defined]
        return None
    return f"the {jax.default_backend()}'s coarse products of float32 numbers"


def warn_if_coarse(dtype: np.dtype) -> None:
    """Warn of a function of the user's own that returns floats of less than 32 bits."""
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        logging.warning(
            "The function returns %s. Its error is not measured, and biases bits per dim: "
            "compute in float32 to report a number.",
            dtype,
        )


def random_numbers() -> str:
    """Name jax's implementation of random numbers, which decides them beside a seed."""
    shape = "partitionable" if jax.config.jax_threefry_partitionable else "not partitionable"  # type: ignore[attr-defined]
    return f"{jax.config.jax_default_prng_impl}, {shape}"  # type: ignore[attr-defined]


def nats_to_bpd(nats: Array, dims: int) -> Array:
    """Convert to bits per dim: `nats / (d log 2)`, same sign."""
    return nats / (dims * math.log(2.0))


def log_mean_exp(values: Float[Array, "draws batch"]) -> types.PerExample:
    """Return the log of the mean of exp over the first axis; `log K` is subtracted."""
    return jax.nn.logsumexp(values, axis=0) - math.log(values.shape[0])


def fold_in_each(key: types.PRNGKey, numbers: Array) -> types.PRNGKeys:
    """Fold each number into the key: `[B] integers -> [B] keys`."""
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


def split_each(keys: types.PRNGKeys, count: int) -> tuple[types.PRNGKeys, ...]:
    """Split every key of `[B]` into `count`: a tuple of `count` arrays `[B]` of keys."""
    return tuple(jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, count))(keys), 1, 0))


def map_chunks(fn: Callable[[Any], Any], batch: Any, size: int) -> Any:
    """Apply `fn` to `size` examples of a batch at a time; leaves `[B, ...]` for any B.

    Every call has the same shapes (the last chunk is padded with the first example), so that the
    result of an example is the same bit for bit for every B: the rounding of a convolution depends
    on the number of images in a batch, not on their content.
    """
    count = jax.tree.leaves(batch)[0].shape[0]
    chunks = -(-count // size)

    def cut(leaf: Array) -> Array:
        filling = jnp.broadcast_to(leaf[:1], (chunks * size - count, *leaf.shape[1:]))
        filled = jnp.concatenate([leaf, filling])
        return filled.reshape(chunks, size, *leaf.shape[1:])

    found = jax.lax.map(fn, jax.tree.map(cut, batch))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], found)


def float_dtype() -> jnp.dtype:
    """Return float32, or float64 if `jax_enable_x64` is set."""
    return jnp.result_type(float)


def normal_each(keys: types.PRNGKeys, shape: tuple[int, ...]) -> types.Images:
    """Draw standard normal images of `shape` (H, W, C), one per key."""
    sample = jax.vmap(lambda key: jax.random.normal(key, shape, dtype=float_dtype()))
    return sample(keys)


def log_normal(noise: types.Images) -> types.PerExample:
    """Return log N(noise; 0, I), nats: `[B, ...] -> [B]`."""
    return -0.5 * (sum_pixels(noise**2) + num_dims(noise) * math.log(2 * math.pi))
