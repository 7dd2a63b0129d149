"""Importance-sampled time for any schedule and parameterization, by numerical inversion."""

import dataclasses
from typing import ClassVar, final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from idode_gin import checks, types
from idode_gin.schedules.time.base import AbstractTime
from idode_gin.time_samplers import base
from idode_gin.time_samplers.quantiles.base import AbstractQuantiles
from idode_gin.time_samplers.quantiles.low_discrepancy import LowDiscrepancy

_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(8)
# Within a panel the integrand is nearly constant, so Newton steps converge fast: five reach float64
# rounding for panels up to one nat wide.
_NEWTON_STEPS = 5


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance(base.AbstractTimeSampler):
    """gamma with sampling density p(gamma) = a(gamma)^2 / Z, so that the loss weight is Z / 2.

    The distribution function is integrated by Gauss-Legendre panels and inverted by Newton steps
    inside the panel of the quantile, to rounding error for smooth weights.

    Args:
        quantiles: source of the uniform numbers.
        panels: equal panels of [gamma_min, gamma_max]; 8 nodes each.
    Refs: i-DODE, importance sampling of time.
    """

    uses_gamma_of_t: ClassVar[bool] = False
    samples_t: ClassVar[bool] = False

    quantiles: AbstractQuantiles = dataclasses.field(default_factory=LowDiscrepancy)
    panels: int = 128

    def __post_init__(self) -> None:
        checks.check_count("panels", self.panels)

    def gamma_and_density(
        self, u: types.PerExample, time: AbstractTime, weight: base.Weight
    ) -> tuple[types.PerExample, types.PerExample]:
        """Return gamma at quantile u of p, and p there."""
        edges = jnp.linspace(time.gamma_min, time.gamma_max, self.panels + 1, dtype=u.dtype)
        masses = _integral(weight, edges[:-1], edges[1:])
        mass_below = jnp.concatenate([jnp.zeros(1, u.dtype), jnp.cumsum(masses)])
        total = mass_below[-1]
        panel = jnp.searchsorted(mass_below, u * total, side="right") - 1
        panel = jnp.clip(panel, 0, self.panels - 1)
        left, right = edges[panel], edges[panel + 1]
        remaining = u * total - mass_below[panel]
        gamma = left + (right - left) * remaining / masses[panel]
        for _ in range(_NEWTON_STEPS):
            excess = _integral(weight, left, gamma) - remaining
            gamma = jnp.clip(gamma - excess / weight(gamma), left, right)
        return gamma, weight(gamma) / total


def _integral(weight: base.Weight, left: Array, right: Array) -> Array:
    """Integrate `weight` from `left` to `right`, elementwise on `[N]`."""
    half = (right - left)[:, None] / 2
    gamma = left[:, None] + half * (1 + jnp.asarray(_NODES, left.dtype))
    return jnp.sum(half * jnp.asarray(_NODE_WEIGHTS, left.dtype) * weight(gamma), axis=1)
