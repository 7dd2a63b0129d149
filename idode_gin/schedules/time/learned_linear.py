"""gamma(t) linear in t, with learned ends."""

import dataclasses
from typing import ClassVar, final

from idode_gin import types
from idode_gin.schedules.time import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedLinear(base.AbstractLearnedTime):
    """gamma(t) = gamma_min + (gamma_max - gamma_min) t, where the ends minimize the bound.

    Args:
        gamma_min: the initial clean end, nats.
        gamma_max: the initial noise end, nats.
        learn_ends: train the ends; if not, this is `Linear`.

    Raises:
        ValueError: unless gamma_min < gamma_max.
    Refs: VDM, learned linear schedule.
    """

    is_linear: ClassVar[bool] = True

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    learn_ends: bool = True

    def __post_init__(self) -> None:
        base.check_ends(self.gamma_min, self.gamma_max)

    def init_interior(self, key: types.PRNGKey) -> types.Params:
        """Return no parameters."""
        return {}

    def fraction(self, interior: types.Params, t: types.Gamma) -> types.Gamma:
        """Return t."""
        return t
