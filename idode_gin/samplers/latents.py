"""Images to their latents at the noise end, back, and between two of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from idode_gin import numerics, ode, types
from idode_gin.dequantizers.base import CleanEnd
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.samplers.ode import ODESampler

_PARALLEL = 1e-4
"""The sine of an angle below which the sphere between two latents is flat."""


class RoundTrip(NamedTuple):
    """Images taken to the noise end and back, per image."""

    noise: types.Images
    """At the noise end, in units of sigma there: what the sampler makes the image of."""
    pixels: types.Pixels
    """Levels of what came back, 0 … V-1."""
    error: types.PerExample
    """Root mean square, over pixels, of the distance between y = z / alpha before and after, in
    levels: half a level can change a pixel."""
    num_changed: Integer[Array, " batch"]
    """Pixels that came back at another level."""
    num_evaluations: Integer[Array, " batch"]
    """Network evaluations, both ways together."""
    success: Bool[Array, " batch"]
    """Whether the solver arrived, both times."""


def round_trip(
    field: ode.Field,
    end: CleanEnd,
    gamma_max: float,
    x: types.Pixels,
    keys: types.PRNGKeys,
    sampler: ODESampler,
) -> RoundTrip:
    """Integer images to latents and back, the start spread inside each pixel's bin.

    An image starts at alpha_0 f + sigma_0 u, u truncated to the bin (`TruncatedNormal`): the bin's
    centre itself would be cleaner than any image the model knows, and its latent no typical noise.
    """
    start = TruncatedNormal()
    z = start.start(x, start.draw(keys, x.shape[1:], end), end)
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


def spherical(first: types.Images, second: types.Images, share: types.PerExample) -> types.Images:
    """The latent that lies `share` of the way from `first` to `second`, on the sphere through both.

        sin((1 - s) w) / sin w * first + sin(s w) / sin w * second,      w the angle between them

    Between two draws of standard normal noise every point is as long as noise is; the straight line
    is shorter in the middle. Where the two are parallel it is that line.
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
    """`spherical` at `num_points` equal shares from 0 to 1, both ends included."""
    shares = jnp.linspace(0, 1, num_points, dtype=first.dtype)
    each = jax.vmap(lambda share: spherical(first, second, jnp.full(first.shape[0], share)))
    return jnp.moveaxis(each(shares), 0, 1)
