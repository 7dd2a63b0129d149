"""kappa = sigma / alpha as time, with the state in units of the signal."""

import dataclasses
from typing import final

import jax.numpy as jnp

from idode_gin import ode, types
from idode_gin.integration_variables import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Kappa(base.AbstractIntegrationVariable):
    """s = kappa = e^{gamma / 2} and y = z / alpha: dy/dkappa = eps_hat, for every schedule.

    With eps_hat = a F + b z this is dy/dkappa = alpha b y + a F. The linear part vanishes if the
    network predicts the noise.
    Refs: EDM, section 3; DDIM, section 4.3.
    """

    def time(self, field: ode.Field, gamma: types.Gamma) -> types.Gamma:
        """Return e^{gamma / 2}."""
        return jnp.exp(gamma / 2)

    def log_scale(self, field: ode.Field, gamma: types.Gamma) -> types.Gamma:
        """Return log alpha."""
        return jnp.log(field.schedule.alpha(gamma))

    def coefficients(self, field: ode.Field, time: types.Gamma) -> base.Coefficients:
        """Return alpha b and a."""
        gamma = 2 * jnp.log(time)
        alpha = field.schedule.alpha(gamma)
        return base.Coefficients(
            gamma=gamma,
            scale=alpha,
            linear=alpha * field.parameterization.latent_scale(field.schedule, gamma),
            output=field.parameterization.noise_scale(field.schedule, gamma),
        )
