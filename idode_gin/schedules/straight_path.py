"""The straight-path schedule."""

import dataclasses
import math
from typing import final

import jax
import jax.numpy as jnp

from idode_gin import types
from idode_gin.schedules import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class StraightPath(base.AbstractSchedule):
    """Signal and noise amplitudes sum to one: alpha + sigma = 1.

        alpha(gamma) = sigmoid(-gamma / 2)      sigma(gamma) = sigmoid(gamma / 2)

    It is the conditional optimal-transport path of flow matching.
    Shapes: elementwise.  Units: gamma in nats.
    Refs: i-DODE, the straight-path schedule.
    """

    def alpha(self, gamma: types.Gamma) -> types.Gamma:
        """Return the signal amplitude."""
        return jax.nn.sigmoid(-gamma / 2)

    def sigma(self, gamma: types.Gamma) -> types.Gamma:
        """Return the noise amplitude."""
        return jax.nn.sigmoid(gamma / 2)

    def dlog_alpha(self, gamma: types.Gamma) -> types.Gamma:
        """Return -sigma / 2."""
        return -jax.nn.sigmoid(gamma / 2) / 2

    def dlog_sigma(self, gamma: types.Gamma) -> types.Gamma:
        """Return alpha / 2."""
        return jax.nn.sigmoid(-gamma / 2) / 2

    def arc_length(self, gamma: types.Gamma) -> types.Gamma:
        """Return sqrt(2) sigma: the path is a diagonal of the unit square."""
        return math.sqrt(2) * self.sigma(gamma)

    def gamma_at(self, arc_length: types.Gamma) -> types.Gamma:
        """Return 2 log(sigma / (1 - sigma))."""
        sigma = arc_length / math.sqrt(2)
        return 2 * (jnp.log(sigma) - jnp.log1p(-sigma))
