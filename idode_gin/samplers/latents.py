"""Encode images to latents at the noise end, decode them, and interpolate between them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from idode_gin import numerics, ode, types
from idode_gin.dequantizers.base import CleanEnd
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.samplers.ode import ODESampler

_PARALLEL = 1e-4
"""Sine of the angle below which interpolation between two latents is linear."""


class RoundTrip(NamedTuple):
    """Encoded and decoded images, per image."""

    noise: types.Images
    """Latent at the noise end in units of sigma: the noise that decodes to the image."""
    pixels: types.Pixels
    """Decoded levels, 0 … V-1."""
    error: types.PerExample
    """Root mean square over pixels of the change of y = z / alpha, in levels; half a level can
    change a pixel."""
    num_changed: Integer[Array, " batch"]
    """Number of pixels decoded to another level."""
    num_evaluations: Integer[Array, " batch"]
    """Network evaluations of both directions."""
    success: Bool[Array, " batch"]
    """True if both solves reached their end."""


def round_trip(
    field: ode.Field,
    end: CleanEnd,
    gamma_max: float,
    x: types.Pixels,
    keys: types.PRNGKeys,
    sampler: ODESampler,
) -> RoundTrip:
    """Encode integer images to latents, from `start`, and decode them."""
    z = start(end, x, keys)
    there = sampler.to_noise(field, end, gamma_max, z)
    back = sampler.from_noise(field, end, gamma_max, there.noise)
    squares = numerics.sum_pixels(((back.latent - z) / end.alpha) ** 2) / numerics.num_dims(z)
    return RoundTrip(
        noise=there.noise,
        pixels=back.pixels,
        error=jnp.sqrt(squares) * end.encoding.levels / 2,
        num_changed=jnp.sum(back.pixels != x, axis=(1, 2, 3)),
        num_evaluations=there.num_evaluations + back.num_evaluations,
        success=there.success & back.success,
    )


def start(end: CleanEnd, x: types.Pixels, keys: types.PRNGKeys) -> types.Images:
    """Return the latents that integer images are encoded from.

    They are alpha_0 f + sigma_0 u with u truncated to the bin (`TruncatedNormal`). The centres of
    the bins have less noise than any image of the model, so their latents would not be typical
    noise.
    """
    dequantizer = TruncatedNormal()
    return dequantizer.start(x, dequantizer.draw(keys, x.shape[1:], end), end)


def spherical(first: types.Images, second: types.Images, share: types.PerExample) -> types.Images:
    """Interpolate spherically: the latent at `share` of the arc from `first` to `second`.

        sin((1 - s) w) / sin w * first + sin(s w) / sin w * second,      w the angle between them

    Points between two draws of standard normal noise have the norm of noise; those on the straight
    line are shorter. Parallel latents are interpolated linearly.
    """
    length = jnp.sqrt(numerics.sum_pixels(first**2) * numerics.sum_pixels(second**2))
    cosine = numerics.sum_pixels(first * second) / jnp.where(length == 0, 1, length)
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    sine = jnp.sin(angle)
    is_flat = sine < _PARALLEL
    safe = jnp.where(is_flat, 1, sine)
    weights = (
        jnp.where(is_flat, each, jnp.sin(each * angle) / safe) for each in (1 - share, share)
    )
    of_first, of_second = (numerics.expand(each, first) for each in weights)
    return of_first * first + of_second * second


def between(
    first: types.Images, second: types.Images, num_points: int
) -> Float[Array, "batch points height width channels"]:
    """Return `spherical` at `num_points` equal shares from 0 to 1, including both ends."""
    shares = jnp.linspace(0, 1, num_points, dtype=first.dtype)
    each = jax.vmap(lambda share: spherical(first, second, jnp.full(first.shape[0], share)))
    return jnp.moveaxis(each(shares), 0, 1)
