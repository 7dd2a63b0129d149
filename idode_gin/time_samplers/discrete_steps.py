"""The steps of a chain in discrete time."""

import dataclasses
from typing import ClassVar, final

import jax.numpy as jnp

from idode_gin import checks, types
from idode_gin.schedules.time.base import AbstractTime
from idode_gin.time_samplers import base
from idode_gin.time_samplers.quantiles.base import AbstractQuantiles
from idode_gin.time_samplers.quantiles.low_discrepancy import LowDiscrepancy


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteSteps(base.AbstractTimeSampler):
    """One of T steps, from s = (i - 1) / T to t = i / T: gamma(t), with

        density = 1 / (T expm1(gamma(t) - gamma(s)))

    An integrand over this density has the mean of the diffusion term of the chain of T steps,

        sum over steps of 1/2 expm1(gamma_t - gamma_s) |eps - eps_hat|^2

    so the first-order loss trains the chain, for every parameterization, and `VariationalBound`
    is that of the chain: at T equally spaced quantiles, every step once. It is above the continuous
    one, and falls to it as T grows.

    Args:
        steps: T.
        quantiles: source of the uniform numbers.
    Refs: VDM, discrete-time loss.
    """

    samples_t: ClassVar[bool] = False

    steps: int
    quantiles: AbstractQuantiles = dataclasses.field(default_factory=LowDiscrepancy)

    def __post_init__(self) -> None:
        checks.check_integer("steps", self.steps, at_least=1)

    def gamma_and_density(
        self, u: types.PerExample, time: AbstractTime, weight: base.Weight
    ) -> tuple[types.PerExample, types.PerExample]:
        """Return gamma at the end of the step of quantile u, and its density."""
        step = jnp.clip(jnp.floor(u * self.steps), 0, self.steps - 1)
        before, after = time.gamma(step / self.steps), time.gamma((step + 1) / self.steps)
        return after, 1 / (self.steps * jnp.expm1(after - before))
