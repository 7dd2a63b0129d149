"""Noise prediction."""

import dataclasses
from typing import final

import jax.numpy as jnp

from idode_gin import types
from idode_gin.parameterizations import base
from idode_gin.schedules.base import AbstractSchedule


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(base.AbstractParameterization):
    """The network predicts the noise itself: F* = eps, so a = 1 and b = 0.

    Refs: VDM; DDPM.
    """

    def noise_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return a = 1."""
        return jnp.ones_like(gamma)

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
