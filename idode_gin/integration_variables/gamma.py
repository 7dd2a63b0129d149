"""gamma as time, the latent itself as state."""

import dataclasses
from typing import final

import jax.numpy as jnp

from idode_gin import ode, types
from idode_gin.integration_variables import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Gamma(base.AbstractIntegrationVariable):
    """s = gamma and y = z: dz/dgamma = (d log alpha + sigma b / 2) z + sigma a / 2 F.

    The published evaluation integrates in this variable.
    """

    def time(self, field: ode.Field, gamma: types.Gamma) -> types.Gamma:
        """Return gamma."""
        return gamma

    def log_scale(self, field: ode.Field, gamma: types.Gamma) -> types.Gamma:
        """Return zero."""
        return jnp.zeros_like(gamma)

    def coefficients(self, field: ode.Field, time: types.Gamma) -> base.Coefficients:
        """Return the coefficients of the drift."""
        return base.Coefficients(
            gamma=time,
            scale=jnp.ones_like(time),
            linear=field.linear_rate(time),
            output=field.output_rate(time),
        )
