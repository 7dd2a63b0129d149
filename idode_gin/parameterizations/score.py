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
        """Return a = -sigma."""
        return -schedule.sigma(gamma)

    def latent_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return b = 0."""
        return jnp.zeros_like(gamma)

    def natural_log_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return log alpha."""
        return jnp.log(schedule.alpha(gamma))

    def natural_time(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return kappa = e^{gamma / 2}."""
        return jnp.exp(gamma / 2)

    def natural_gamma(self, schedule: AbstractSchedule, time: types.Gamma) -> types.Gamma:
        """Return 2 log kappa."""
        return 2 * jnp.log(time)

    def natural_speed(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return -sigma: the noise is the velocity, and the score is -1 / sigma times the noise."""
        return -schedule.sigma(gamma)
