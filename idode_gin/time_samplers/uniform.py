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
    """t uniform in [0, 1]: gamma = gamma(t), with sampling density 1 / (d gamma / dt).

    This is uniform in gamma if gamma(t) is linear, and then the importance sampler of noise
    prediction.
    """

    quantiles: AbstractQuantiles = dataclasses.field(default_factory=LowDiscrepancy)

    def gamma_and_density(
        self, u: types.PerExample, time: AbstractTime, weight: base.Weight
    ) -> tuple[types.PerExample, types.PerExample]:
        """Return gamma(u) and its sampling density; the weight is not used."""
        return time.gamma(u), 1 / time.dgamma(u)
