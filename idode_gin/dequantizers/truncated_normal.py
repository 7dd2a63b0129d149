"""Truncated-normal dequantization, which requires no training."""

import dataclasses
import functools
import math
from typing import final

import jax
import jax.numpy as jnp

from idode_gin import numerics, types
from idode_gin.dequantizers import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class TruncatedNormal(base.AbstractDequantizer):
    """The forward process at gamma_min, truncated to the bin: z = alpha_0 f + sigma_0 u, |u| < tau.

        -log q = d/2 log(2 pi sigma_0^2 Z^2) + 1/2 |u|^2        Z = erf(tau / sqrt 2)
        mean  d/2 (1 + log(2 pi sigma_0^2)) + d log Z - d tau e^{-tau^2/2} / (sqrt(2 pi) Z)

    with tau = alpha_0 / (sigma_0 V), half a bin in units of the noise.
    Refs: i-DODE, truncated-normal dequantization.
    """

    def gamma_start(self, end: base.CleanEnd) -> float:
        """Return gamma at the clean end, nats."""
        return end.gamma_number

    def draw(
        self, keys: types.PRNGKeys, shape: tuple[int, ...], end: base.CleanEnd
    ) -> types.Images:
        """Draw standard normal noise truncated to [-tau, tau]."""
        dtype, tau = numerics.float_dtype(), end.tau
        # Where erf(tau / sqrt 2) rounds to 1, jax draws -tau itself, once in 2^23 in float32.
        below_one = jnp.nextafter(jnp.ones((), dtype), jnp.zeros((), dtype))
        reach = math.sqrt(2) * jax.scipy.special.erfinv(below_one)
        draw = functools.partial(jax.random.truncated_normal, shape=shape, dtype=dtype)
        return jnp.clip(jax.vmap(lambda key: draw(key, -tau, tau))(keys), -reach, reach)

    def start(self, x: types.Pixels, noise: types.Images, end: base.CleanEnd) -> types.Images:
        """Return alpha_0 f + sigma_0 u."""
        return end.alpha * end.encoding.encode(x) + end.sigma * noise

    def neg_log_q(self, noise: types.Images, end: base.CleanEnd) -> types.PerExample:
        """Return -log q of these draws, nats per image."""
        log_scale = 0.5 * math.log(2 * math.pi) + jnp.log(end.sigma) + jnp.log(_mass(end))
        return numerics.num_dims(noise) * log_scale + 0.5 * numerics.sum_pixels(noise**2)

    def entropy(self, dims: int, end: base.CleanEnd) -> base.Scalar:
        """Return the entropy of q, nats per image."""
        mass, tau = _mass(end), end.tau
        normal = 0.5 * (1 + math.log(2 * math.pi)) + jnp.log(end.sigma)
        cut = jnp.log(mass) - tau * jnp.exp(-(tau**2) / 2) / (math.sqrt(2 * math.pi) * mass)
        return dims * (normal + cut)

    def log_reconstruction(
        self, x: types.Pixels, z: types.Images, end: base.CleanEnd
    ) -> types.PerExample:
        """Return zero: z is inside the bin of x."""
        return jnp.zeros(z.shape[0], z.dtype)


def _mass(end: base.CleanEnd) -> base.Scalar:
    """Return Z, the mass of a standard normal inside [-tau, tau]."""
    return jax.scipy.special.erf(end.tau / math.sqrt(2))
