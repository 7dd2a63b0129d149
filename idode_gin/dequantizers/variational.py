"""Variational dequantization with the diffusion's own first step as posterior."""

import dataclasses
import math
from typing import final

import jax.numpy as jnp

from idode_gin import numerics, types
from idode_gin.dequantizers import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Variational(base.AbstractDequantizer):
    """The forward process at gamma_min with its decoder: z = alpha_0 f + sigma_0 eps.

        -log q = d/2 log(2 pi sigma_0^2) + 1/2 |eps|^2       mean d/2 (1 + log(2 pi sigma_0^2))

    z may be outside the bin of x, so log P(x | z) of the decoder is part of the bound.
    Refs: i-DODE, variational dequantization; VDM's decoder.
    """

    def gamma_start(self, end: base.CleanEnd) -> float:
        """Return gamma at the clean end, nats."""
        return end.gamma_number

    def draw(
        self, keys: types.PRNGKeys, shape: tuple[int, ...], end: base.CleanEnd
    ) -> types.Images:
        """Draw standard normal noise."""
        return numerics.normal_each(keys, shape)

    def start(self, x: types.Pixels, noise: types.Images, end: base.CleanEnd) -> types.Images:
        """Return alpha_0 f + sigma_0 eps."""
        return end.alpha * end.encoding.encode(x) + end.sigma * noise

    def neg_log_q(self, noise: types.Images, end: base.CleanEnd) -> types.PerExample:
        """Return -log q of these draws, nats per image."""
        log_scale = 0.5 * math.log(2 * math.pi) + jnp.log(end.sigma)
        return numerics.num_dims(noise) * log_scale + 0.5 * numerics.sum_pixels(noise**2)

    def entropy(self, dims: int, end: base.CleanEnd) -> base.Scalar:
        """Return the entropy of q, nats per image."""
        return dims * (0.5 * (1 + math.log(2 * math.pi)) + jnp.log(end.sigma))

    def log_reconstruction(
        self, x: types.Pixels, z: types.Images, end: base.CleanEnd
    ) -> types.PerExample:
        """Return log P(x | z) of the decoder, nats per image."""
        return end.encoding.log_prob(x, z / end.alpha, end.gamma)
