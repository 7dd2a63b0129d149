"""Fixed features of time and of pixels, in float32 or better."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from idode_gin import types


def timestep_embedding(
    time: types.PerExample, size: int, scale: float = 1000.0
) -> Float[Array, "batch size"]:
    """Return sines, then cosines, of time at `size / 2` geometrically spaced frequencies.

        sin(w_i scale time), cos(w_i scale time),     w_i = 10^(-4 i / (size/2 - 1))

    Args:
        time: in [0, 1].
        size: even, at least 4.
        scale: angle of the fastest sine over the whole range of time, radians.
    Refs: VDM, appendix on the score network.
    """
    half = size // 2
    time = time.astype(jnp.promote_types(time.dtype, jnp.float32))
    frequencies = np.power(1e4, -np.arange(half) / (half - 1))
    angles = scale * time[:, None] * jnp.asarray(frequencies, time.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def fourier_features(
    z: types.Images, exponents: tuple[int, ...]
) -> Float[Array, "batch height width features"]:
    """Return sines, then cosines, of 2 pi 2^k z for each channel and each exponent k.

    `2 * channels * len(exponents)` features. Large k resolve the last bits of a pixel.
    Refs: VDM, section on Fourier features.
    """
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    turns = z[..., None] * jnp.asarray([2.0**k for k in exponents], z.dtype)
    # Whole turns are subtracted first, which is exact. The sine of a large angle would contain the
    # rounding error of 2 pi 2^k z, 5e-5 for k = 7 in float32.
    angles = 2 * np.pi * (turns - jnp.round(turns))
    angles = angles.reshape(*z.shape[:-1], z.shape[-1] * len(exponents))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
