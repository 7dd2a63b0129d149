"""Score prediction."""

import dataclasses
from typing import final

import jax.numpy as jnp

from idode_gin import types
from idode_gin.parameterizations import base
from idode_gin.schedules.base import AbstractSchedule


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(base.AbstractParameterization):
    """The network predicts the score of the noisy marginal: F* = -eps/sigma, a = -sigma, b = 0."""

    def noise_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """a = -sigma."""
        return -schedule.sigma(gamma)

    def latent_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """b = 0."""
        return jnp.zeros_like(gamma)
