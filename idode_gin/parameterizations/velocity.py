"""Velocity prediction."""

import dataclasses
from typing import final

import jax.numpy as jnp

from idode_gin import types
from idode_gin.parameterizations import base
from idode_gin.schedules.base import AbstractSchedule


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Velocity(base.AbstractParameterization):
    """The network predicts the velocity along the path at unit speed.

    With alpha' and sigma' the derivatives of the two amplitudes by gamma and n the length of
    (alpha', sigma'), the target is the velocity per unit of arc length in the (alpha, sigma) plane:

        F* = (alpha' f + sigma' eps) / n
        a = 2 n / sigma        b = -2 (d log alpha / d gamma) / sigma

    For the variance-preserving path that is F* = alpha eps - sigma f (a = alpha, b = sigma), for
    the straight path F* = (eps - f) / sqrt 2 (a = sqrt 2 alpha, b = 1), which are the two
    normalizations of the paper.
    Refs: i-DODE, velocity parameterization.
    """

    def noise_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return a = 2 n / sigma, with alpha / sigma = exp(-gamma / 2)."""
        towards_data = jnp.exp(-gamma / 2) * schedule.dlog_alpha(gamma)
        towards_noise = schedule.dlog_sigma(gamma)
        return 2 * jnp.sqrt(towards_data**2 + towards_noise**2)

    def latent_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return b = -2 (d log alpha / d gamma) / sigma."""
        return -2 * schedule.dlog_alpha(gamma) / schedule.sigma(gamma)

    def natural_log_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return zero: the output is dz/ds."""
        return jnp.zeros_like(gamma)

    def natural_time(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return the arc length in the (alpha, sigma) plane."""
        return schedule.arc_length(gamma)

    def natural_gamma(self, schedule: AbstractSchedule, time: types.Gamma) -> types.Gamma:
        """Return gamma at that arc length."""
        return schedule.gamma_at(time)
