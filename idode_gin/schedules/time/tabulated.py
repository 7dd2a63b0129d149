"""gamma(t) piecewise linear, with a density of gamma that is measured in training."""

import dataclasses
from typing import ClassVar, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from idode_gin import checks, numerics, types
from idode_gin.schedules.time import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tabulated(base.AbstractLearnedTime):
    """A density p(gamma) = dt / dgamma that is constant in equal bins of the range of gamma.

    Gradients leave the interior alone. Every `adapt_period` training steps the masses of the bins
    follow the loss that was sampled since the last time, L nats per nat of gamma:

        mass of a bin = (1 - floor) r / sum(r) + floor / bins       r = sqrt(mean of L^2 in the bin)

    Without the floor this density has the least variance of L / p: the variance is at least
    (integral of r)^2 - (integral of mean L)^2. A bin without samples keeps its mass, but
    for its share of the floor.

    The ends minimize the bound. The time sampler must be `uniform.Uniform`.

    Args:
        gamma_min: the initial clean end, nats.
        gamma_max: the initial noise end, nats.
        learn_ends: train the ends; if not, they stay as given.
        bins: number of bins.
        adapt_period: training steps between two adaptations.
        floor: share of a uniform density in it, in (0, 1], so that every bin is still sampled.

    Raises:
        ValueError: for a number out of range.
    """

    learns_interior: ClassVar[bool] = True

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    learn_ends: bool = True
    bins: int = 64
    adapt_period: int = 500
    floor: float = 0.1

    def __post_init__(self) -> None:
        base.check_ends(self.gamma_min, self.gamma_max)
        checks.check_integer("bins", self.bins, at_least=1)
        checks.check_integer("adapt_period", self.adapt_period, at_least=1)
        if not 0 < self.floor <= 1:
            raise ValueError(f"`floor` must be in (0, 1], got floor={self.floor}.")

    @property
    def adaptation(self) -> base.Adaptation:
        """Bins of the loss, and the interior that follows them."""
        return base.Adaptation(self.bins, self.adapt_period, self.adapted)

    def init_interior(self, key: types.PRNGKey) -> types.Params:
        """Return equal masses; the key is not used."""
        return {"log_masses": jnp.zeros(self.bins, numerics.float_dtype())}

    def fraction(self, interior: types.Params, t: types.Gamma) -> types.Gamma:
        """Return the fraction at quantile t of the density."""
        masses = jax.nn.softmax(jax.lax.stop_gradient(interior["log_masses"]))
        below = jnp.concatenate([jnp.zeros(1, masses.dtype), jnp.cumsum(masses)])
        edges = (below / below[-1]).astype(t.dtype)
        place = jnp.searchsorted(edges, t, side="right", method="compare_all") - 1  # no loop
        place = jnp.clip(place, 0, self.bins - 1)
        left, right = edges[place], edges[place + 1]
        return (place + (t - left) / (right - left)) / self.bins

    def adapted(
        self,
        interior: types.Params,
        squares: Float[Array, " bins"],
        counts: Float[Array, " bins"],
    ) -> types.Params:
        """Return the interior for these sums of L^2 and numbers of samples; scale is no matter."""
        masses = jax.nn.softmax(interior["log_masses"])
        is_known = (counts > 0) & jnp.isfinite(squares)
        root = jnp.sqrt(jnp.where(is_known, squares / jnp.where(is_known, counts, 1.0), 0.0))
        # Known bins share what they had together. Without any loss, all keep what they have.
        known, total = jnp.sum(jnp.where(is_known, masses, 0.0)), jnp.sum(root)
        found = jnp.where(is_known, known * root / jnp.where(total > 0, total, 1.0), masses)
        found = (1 - self.floor) * found + self.floor / self.bins
        return {"log_masses": jnp.where(total > 0, jnp.log(found), interior["log_masses"])}
