"""The time in which the parameterization's own output is the velocity."""

import dataclasses
from typing import final

import jax.numpy as jnp

from idode_gin import ode, types
from idode_gin.integration_variables import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Natural(base.AbstractIntegrationVariable):
    """dy/ds = speed F: the linear part of the ODE is solved exactly, by the scale of the state.

    The parameterization says which s and y: the angle atan kappa and z itself for the velocity of
    the variance-preserving path, where dz/ds = F; t and z for that of the straight path; kappa and
    z / alpha for the noise, 1 / kappa and z / sigma for the data.
    """

    def time(self, field: ode.Field, gamma: types.Gamma) -> types.Gamma:
        """The parameterization's."""
        return field.parameterization.natural_time(field.schedule, gamma)

    def log_scale(self, field: ode.Field, gamma: types.Gamma) -> types.Gamma:
        """The parameterization's."""
        return field.parameterization.natural_log_scale(field.schedule, gamma)

    def coefficients(self, field: ode.Field, time: types.Gamma) -> base.Coefficients:
        """No linear part."""
        gamma = field.parameterization.natural_gamma(field.schedule, time)
        return base.Coefficients(
            gamma=gamma,
            scale=jnp.exp(self.log_scale(field, gamma)),
            linear=jnp.zeros_like(time),
            output=field.parameterization.natural_speed(field.schedule, gamma),
        )
