"""The variance-preserving schedule."""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp

from idode_gin import types
from idode_gin.schedules import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class VariancePreserving(base.AbstractSchedule):
    """Signal and noise powers sum to one: alpha^2 + sigma^2 = 1.

        alpha(gamma) = sqrt(sigmoid(-gamma))      sigma(gamma) = sqrt(sigmoid(gamma))

    Shapes: elementwise.  Units: gamma in nats.
    Refs: VDM, section on the forward process.
    """

    def alpha(self, gamma: types.Gamma) -> types.Gamma:
        """Return the signal amplitude."""
        return jnp.sqrt(jax.nn.sigmoid(-gamma))

    def sigma(self, gamma: types.Gamma) -> types.Gamma:
        """Return the noise amplitude."""
        return jnp.sqrt(jax.nn.sigmoid(gamma))

    def dlog_alpha(self, gamma: types.Gamma) -> types.Gamma:
        """Return -sigma^2 / 2."""
        return -jax.nn.sigmoid(gamma) / 2

    def dlog_sigma(self, gamma: types.Gamma) -> types.Gamma:
        """Return alpha^2 / 2."""
        return jax.nn.sigmoid(-gamma) / 2

    def arc_length(self, gamma: types.Gamma) -> types.Gamma:
        """Return the angle atan(sigma / alpha): the path is a quarter of a circle."""
        return jnp.arctan(jnp.exp(gamma / 2))

    def gamma_at(self, arc_length: types.Gamma) -> types.Gamma:
        """Return 2 log(tan(arc_length))."""
        return 2 * jnp.log(jnp.tan(arc_length))
