"""Uniform time."""

import dataclasses
from typing import final

from idode_gin import types
from idode_gin.schedules.time.base import AbstractTime
from idode_gin.time_samplers import base
from idode_gin.time_samplers.quantiles.base import AbstractQuantiles
from idode_gin.time_samplers.quantiles.low_discrepancy import LowDiscrepancy


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform(base.AbstractTimeSampler):
    """t uniform in [0, 1]: gamma = gamma(t), with density 1 / (d gamma / dt).

    Uniform in gamma where gamma(t) is linear; for noise prediction that is the importance sampler.
    """

    quantiles: AbstractQuantiles = dataclasses.field(default_factory=LowDiscrepancy)

    def gamma_and_density(
        self, u: types.PerExample, time: AbstractTime, weight: base.Weight
    ) -> tuple[types.PerExample, types.PerExample]:
        """gamma(u) and its density; the weight does not matter."""
        return time.gamma(u), 1 / time.dgamma(u)
