"""Uniform dequantization."""

import dataclasses
import math
from typing import final

import jax
import jax.numpy as jnp

from idode_gin import checks, numerics, types
from idode_gin.dequantizers import base

_PUBLISHED_GAMMA, _PUBLISHED_LEVELS = -11.8, 256


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform(base.AbstractDequantizer):
    """Uniform noise over the bin: z = 2 (x + u) / V - 1 with u in [0, 1).

        -log q = -d log(V / 2)          it adds log2(V) - 1 bits per dim, 7 for V = 256

    The latent is not scaled by alpha, so the ODE starts where its noise and the bin have about the
    same size. The published start for 256 levels, -11.8, gives `e^{gamma/2} V` = 0.70, and other V
    keep that ratio; but the ODE never starts before the clean end, where the model is not defined.
    Every start gives a valid density; a bad one gives a looser bound.

    On the straight path a pixel f lies |f| standard deviations of the noise beside its peak at
    alpha f. Where the model is sure of the pixel this costs f^2 / 2 nats, 0.7 bits for black and
    white. Truncated-normal dequantization, which scales by alpha, has no such cost.

    Args:
        start_gamma: gamma at the start of the ODE, nats; None for the rule above.

    Raises:
        ValueError: if `start_gamma` is not finite; by `gamma_start`, if it is below gamma_min.
    Refs: i-DODE, Remark A.2.
    """

    start_gamma: float | None = None

    def __post_init__(self) -> None:
        if self.start_gamma is not None:
            checks.check_finite("start_gamma", self.start_gamma)

    def gamma_start(self, end: base.CleanEnd) -> float:
        """Return gamma at the start of the ODE, nats."""
        if self.start_gamma is not None:
            if self.start_gamma < end.gamma_number:
                raise ValueError(
                    f"`start_gamma` must be at least gamma_min = {end.gamma_number:g}, below which "
                    f"the model is not defined, got start_gamma={self.start_gamma}."
                )
            return self.start_gamma
        rule = _PUBLISHED_GAMMA + 2 * math.log(_PUBLISHED_LEVELS / end.encoding.levels)
        return max(rule, end.gamma_number)

    def draw(
        self, keys: types.PRNGKeys, shape: tuple[int, ...], end: base.CleanEnd
    ) -> types.Images:
        """Draw uniform noise in [0, 1)."""
        dtype = numerics.float_dtype()
        return jax.vmap(lambda key: jax.random.uniform(key, shape, dtype))(keys)

    def start(self, x: types.Pixels, noise: types.Images, end: base.CleanEnd) -> types.Images:
        """Return 2 (x + u) / V - 1: the centre of the bin, moved by up to half a bin."""
        return end.encoding.encode(x) + (2 * noise - 1) / end.encoding.levels

    def neg_log_q(self, noise: types.Images, end: base.CleanEnd) -> types.PerExample:
        """Return -d log(V / 2), the same for every draw; nats per image."""
        entropy = self.entropy(numerics.num_dims(noise), end)
        return jnp.broadcast_to(entropy, noise.shape[:1]).astype(noise.dtype)

    def entropy(self, dims: int, end: base.CleanEnd) -> base.Scalar:
        """Return -d log(V / 2), nats per image."""
        return jnp.asarray(-dims * math.log(end.encoding.levels / 2), numerics.float_dtype())

    def log_reconstruction(
        self, x: types.Pixels, z: types.Images, end: base.CleanEnd
    ) -> types.PerExample:
        """Return zero: z is inside the bin of x."""
        return jnp.zeros(z.shape[0], z.dtype)
