"""gamma as time, the linear part solved exactly, the known factor left to the solver."""

import dataclasses
from typing import final

import jax.numpy as jnp
from jaxtyping import Array

from idode_gin import ode, types
from idode_gin.integration_variables import base
from idode_gin.solvers.base import Density


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Exponential(base.AbstractIntegrationVariable):
    """s = gamma and y = z / m with m as in `Natural`: dy/dgamma = rho(gamma) F.

        rho = sigma a / (2 m)

    As a function of gamma F is smooth, and so is the log-density's slope (near the clean end it is
    constant: the bins look like normal densities); rho grows like e^{gamma / 2}. A solver that
    integrates rho exactly (`Adams`) therefore needs few steps; to others this is `Gamma` without
    the linear part.
    Refs: DPM-Solver, exponential integrators in log-SNR, there for sampling.
    """

    def time(self, field: ode.Field, gamma: types.Gamma) -> types.Gamma:
        """gamma."""
        return gamma

    def log_scale(self, field: ode.Field, gamma: types.Gamma) -> types.Gamma:
        """The parameterization's."""
        return field.parameterization.natural_log_scale(field.schedule, gamma)

    def coefficients(self, field: ode.Field, time: types.Gamma) -> base.Coefficients:
        """rho, and no linear part."""
        scale = jnp.exp(self.log_scale(field, time))
        return base.Coefficients(
            gamma=time,
            scale=scale,
            linear=jnp.zeros_like(time),
            output=field.output_rate(time) / scale,
        )

    def density(self, field: ode.Field) -> Density:
        """rho."""

        def rho(gamma: Array) -> Array:
            return field.output_rate(gamma) / jnp.exp(self.log_scale(field, gamma))

        return rho
