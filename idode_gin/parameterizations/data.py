"""Data prediction."""

import dataclasses
from typing import final

import jax.numpy as jnp

from idode_gin import types
from idode_gin.parameterizations import base
from idode_gin.schedules.base import AbstractSchedule


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(base.AbstractParameterization):
    """The network predicts the clean image: F* = f, so a = -alpha/sigma and b = 1/sigma."""

    def noise_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return a = -alpha / sigma = -exp(-gamma / 2)."""
        return -jnp.exp(-gamma / 2)

    def latent_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return b = 1 / sigma."""
        return 1 / schedule.sigma(gamma)

    def natural_log_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return log sigma."""
        return jnp.log(schedule.sigma(gamma))

    def natural_time(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return 1 / kappa = e^{-gamma / 2}."""
        return jnp.exp(-gamma / 2)

    def natural_gamma(self, schedule: AbstractSchedule, time: types.Gamma) -> types.Gamma:
        """Return -2 log s."""
        return -2 * jnp.log(time)
