"""gamma(t) whose noise amplitude on the straight path is linear in t."""

import dataclasses
import math
from typing import final

import jax.numpy as jnp

from idode_gin import types
from idode_gin.schedules.time import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Straight(base.AbstractTime):
    """gamma(t) = 2 log(s / (1 - s)), with s linear from sigma at gamma_min to sigma at gamma_max.

    On the straight path s = sigma: this is flow matching's own time, cut off at both ends.

    Args:
        gamma_min: the clean end, nats.
        gamma_max: the noise end, nats.

    Raises:
        ValueError: unless gamma_min < gamma_max.
    Refs: flow matching, conditional optimal transport path.
    """

    gamma_min: float = -13.3
    gamma_max: float = 5.0

    def __post_init__(self) -> None:
        base.check_ends(self.gamma_min, self.gamma_max)

    def gamma(self, t: types.Gamma) -> types.Gamma:
        """Return gamma(t), elementwise."""
        ends = self.gamma_min, self.gamma_max
        start, end = (1 / (1 + math.exp(-each / 2)) for each in ends)
        # 1 - s from the noise end, where the difference would be rounded.
        rest_start, rest_end = (1 / (1 + math.exp(each / 2)) for each in ends)
        s = start + (end - start) * t
        rest = rest_end + (rest_start - rest_end) * (1 - t)
        return 2 * (jnp.log(s) - jnp.log(rest))
