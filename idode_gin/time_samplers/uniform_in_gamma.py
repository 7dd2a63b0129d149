"""gamma uniform between its ends, whatever gamma(t)."""

import dataclasses
from typing import ClassVar, final

import jax.numpy as jnp

from idode_gin import types
from idode_gin.schedules.time.base import AbstractTime
from idode_gin.time_samplers import base
from idode_gin.time_samplers.quantiles.base import AbstractQuantiles
from idode_gin.time_samplers.quantiles.low_discrepancy import LowDiscrepancy


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformInGamma(base.AbstractTimeSampler):
    """Sampling density 1 / (gamma_max - gamma_min), which weighs all of the bound's range alike."""

    uses_gamma_of_t: ClassVar[bool] = False
    samples_t: ClassVar[bool] = False

    quantiles: AbstractQuantiles = dataclasses.field(default_factory=LowDiscrepancy)

    def gamma_and_density(
        self, u: types.PerExample, time: AbstractTime, weight: base.Weight
    ) -> tuple[types.PerExample, types.PerExample]:
        """Return gamma at quantile u, and the density; the weight is not used."""
        span = time.gamma_max - time.gamma_min
        return time.gamma_min + span * u, jnp.full_like(u, 1 / span)


def for_bound(
    time_sampler: base.AbstractTimeSampler, time: AbstractTime
) -> base.AbstractTimeSampler:
    """Return a time sampler for estimates of the variational bound of a trained model.

    It is the one of its training, which importance sampling or a learned gamma(t) suits to the
    bound, unless that draws a uniform t of a fixed gamma(t) that is not linear. Objectives without
    a bound, such as DDPM's, do: with the linear noise rate, 0.3 % of t is the third of the range of
    gamma where most of the bound is. An estimate divides by this density: it would rest on a few
    samples, and usually be too low. `UniformInGamma` replaces it.

    Args:
        time_sampler: of the training.
        time: gamma(t) of the model.
    """
    is_fixed = not (time.is_linear or time.learns_interior)
    return UniformInGamma() if time_sampler.samples_t and is_fixed else time_sampler
