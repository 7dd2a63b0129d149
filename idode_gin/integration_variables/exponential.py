"""gamma as time, with the linear part solved exactly and the known factor left to the solver."""

import dataclasses
from typing import final

import jax.numpy as jnp
from jaxtyping import Array

from idode_gin import ode, types
from idode_gin.integration_variables import base
from idode_gin.solvers.base import WeightFn


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Exponential(base.AbstractIntegrationVariable):
    """s = gamma and y = z / m with m as in `Natural`: dy/dgamma = rho(gamma) F.

        rho = sigma a / (2 m)

    F is smooth as a function of gamma, and so is the slope of the log-density, which is constant
    near the clean end; rho grows like e^{gamma / 2}. A solver that integrates rho exactly (`Adams`)
    therefore needs few steps. For other solvers this is `Gamma` without the linear part.
    Refs: DPM-Solver, exponential integrators in log-SNR, there for sampling.
    """

    def time(self, field: ode.Field, gamma: types.Gamma) -> types.Gamma:
        """Return gamma."""
        return gamma

    def log_scale(self, field: ode.Field, gamma: types.Gamma) -> types.Gamma:
        """Return the natural scale of the parameterization."""
        return field.parameterization.natural_log_scale(field.schedule, gamma)

    def coefficients(self, field: ode.Field, time: types.Gamma) -> base.Coefficients:
        """Return rho, without a linear part."""
        scale = jnp.exp(self.log_scale(field, time))
        return base.Coefficients(
            gamma=time,
            scale=scale,
            linear=jnp.zeros_like(time),
            output=field.output_rate(time) / scale,
        )

    def weight_fn(self, field: ode.Field) -> WeightFn:
        """Return rho."""

        def rho(gamma: Array) -> Array:
            return field.output_rate(gamma) / jnp.exp(self.log_scale(field, gamma))

        return rho
