"""The time in which the output of the parameterization is the velocity."""

import dataclasses
from typing import final

import jax.numpy as jnp

from idode_gin import ode, types
from idode_gin.integration_variables import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Natural(base.AbstractIntegrationVariable):
    """dy/ds = speed F: the scale of the state solves the linear part of the ODE exactly.

    The parameterization defines s and y: for velocity, atan kappa and z on the variance-preserving
    path (dz/ds = F) and t and z on the straight path; kappa and z / alpha for noise; 1 / kappa and
    z / sigma for data.
    """

    def time(self, field: ode.Field, gamma: types.Gamma) -> types.Gamma:
        """Return the natural time of the parameterization."""
        return field.parameterization.natural_time(field.schedule, gamma)

    def log_scale(self, field: ode.Field, gamma: types.Gamma) -> types.Gamma:
        """Return the natural scale of the parameterization."""
        return field.parameterization.natural_log_scale(field.schedule, gamma)

    def coefficients(self, field: ode.Field, time: types.Gamma) -> base.Coefficients:
        """Return the coefficients, without a linear part."""
        gamma = field.parameterization.natural_gamma(field.schedule, time)
        return base.Coefficients(
            gamma=gamma,
            scale=jnp.exp(self.log_scale(field, gamma)),
            linear=jnp.zeros_like(time),
            output=field.parameterization.natural_speed(field.schedule, gamma),
        )
