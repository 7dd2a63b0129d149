"""gamma(t) whose angle on the variance-preserving circle is linear in t."""

import dataclasses
import math
from typing import final

import jax.numpy as jnp

from idode_gin import types
from idode_gin.schedules.time import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(base.AbstractTime):
    """gamma(t) = 2 log tan(a(t)), with an angle a linear from gamma_min to gamma_max.

    On the variance-preserving path alpha = cos(a) and sigma = sin(a).

    Args:
        gamma_min: the clean end, nats.
        gamma_max: the noise end, nats.

    Raises:
        ValueError: unless gamma_min < gamma_max.
    Refs: Nichol and Dhariwal 2021, cosine schedule, without its offset.
    """

    gamma_min: float = -13.3
    gamma_max: float = 5.0

    def __post_init__(self) -> None:
        base.check_ends(self.gamma_min, self.gamma_max)

    def gamma(self, t: types.Gamma) -> types.Gamma:
        """Return gamma(t), elementwise."""
        ends = self.gamma_min, self.gamma_max
        start, end = (math.atan(math.exp(each / 2)) for each in ends)
        # Near the noise end from the other side of the right angle, where a would be rounded.
        rest_start, rest_end = (math.atan(math.exp(-each / 2)) for each in ends)
        a = start + (end - start) * t
        rest = rest_end + (rest_start - rest_end) * (1 - t)
        is_clean = a < math.pi / 4
        tangent = jnp.tan(jnp.where(is_clean, a, rest))
        return jnp.where(is_clean, 2, -2) * jnp.log(tangent)
