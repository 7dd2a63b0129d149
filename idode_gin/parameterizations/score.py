"""Score prediction."""

import dataclasses
from typing import final

from idode_gin import types
from idode_gin.parameterizations import base
from idode_gin.schedules.base import AbstractSchedule


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(base.AbstractNoiseMultiple):
    """The network predicts the score of the noisy marginal: F* = -eps/sigma, a = -sigma, b = 0."""

    def noise_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return a = -sigma."""
        return -schedule.sigma(gamma)

    def natural_speed(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return -sigma: the noise is the velocity, and the score is -1 / sigma times the noise."""
        return -schedule.sigma(gamma)
