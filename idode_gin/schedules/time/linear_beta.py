"""gamma(t) of a noise rate that grows linearly with time."""

import dataclasses
import math
from typing import final

import jax.numpy as jnp

from idode_gin import types
from idode_gin.schedules.time import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearBeta(base.AbstractTime):
    """gamma(t) = log(e^B - 1), with B(s) = beta_0 s + (beta_1 - beta_0) s^2 / 2 and s linear in t.

    On the variance-preserving path alpha^2 = e^-B. s runs from where gamma is gamma_min to where it
    is gamma_max: for s from 0 to 1, gamma runs from minus infinity to 10.05 at the published rates.

    Args:
        gamma_min: the clean end, nats.
        gamma_max: the noise end, nats.
        beta_0: rate at s = 0.
        beta_1: rate at s = 1.

    Raises:
        ValueError: unless gamma_min < gamma_max and 0 < beta_0 < beta_1.
    Refs: DDPM, linear variance schedule in the continuous-time form of score-based models.
    """

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    beta_0: float = 0.1
    beta_1: float = 20.0

    def __post_init__(self) -> None:
        base.check_ends(self.gamma_min, self.gamma_max)
        if not 0 < self.beta_0 < self.beta_1:
            raise ValueError(
                f"`beta_0` must be positive and below `beta_1`, got beta_0={self.beta_0} and "
                f"beta_1={self.beta_1}. The published rates are 0.1 and 20."
            )

    def gamma(self, t: types.Gamma) -> types.Gamma:
        """Return gamma(t), elementwise."""
        start, end = (self._s(each) for each in (self.gamma_min, self.gamma_max))
        s = start + (end - start) * t
        exponent = self.beta_0 * s + (self.beta_1 - self.beta_0) * s**2 / 2
        return jnp.log(jnp.expm1(exponent))

    def _s(self, gamma: float) -> float:
        """Return s where B = log(1 + e^gamma)."""
        exponent = math.log1p(math.exp(gamma))
        rise = self.beta_1 - self.beta_0
        root = math.sqrt(self.beta_0**2 + 2 * rise * exponent)
        return 2 * exponent / (self.beta_0 + root)  # without the cancellation of root - beta_0
