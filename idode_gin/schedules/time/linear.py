"""gamma(t) linear in t, with fixed ends."""

import dataclasses
import math
from typing import ClassVar, final

from idode_gin import checks, types
from idode_gin.schedules.time import base


def gamma_min_for_levels(levels: int) -> float:
    """Return the clean end with tau = alpha / (sigma V) near 3 for `levels` = V pixel levels.

        gamma_min = -2 log(3 V)        -13.29 for 256 levels, -7.86 for 17

    Raises:
        ValueError: if there are fewer than two levels.
    """
    checks.check_integer("levels", levels, at_least=2)
    return -2 * math.log(3 * levels)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(base.AbstractTime):
    """gamma(t) = gamma_min + (gamma_max - gamma_min) t.

    Args:
        gamma_min: the clean end, nats; the published value for 256 levels is -13.3.
        gamma_max: the noise end, nats; published 5.

    Raises:
        ValueError: unless gamma_min < gamma_max.
    Refs: i-DODE, experimental settings; VDM, fixed linear schedule.
    """

    is_linear: ClassVar[bool] = True

    gamma_min: float = -13.3
    gamma_max: float = 5.0

    def __post_init__(self) -> None:
        base.check_ends(self.gamma_min, self.gamma_max)

    def gamma(self, t: types.Gamma) -> types.Gamma:
        """Return gamma(t), elementwise."""
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t
