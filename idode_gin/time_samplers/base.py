"""The contract of a time sampler."""

import abc
from collections.abc import Callable
from typing import TypeAlias

from idode_gin import types
from idode_gin.schedules.time.base import AbstractTime
from idode_gin.time_samplers.quantiles.base import AbstractQuantiles

Weight: TypeAlias = Callable[[types.Gamma], types.Gamma]
"""gamma -> a(gamma)^2, elementwise: how much a squared output error counts there."""


class AbstractTimeSampler(abc.ABC):
    """Turns uniform quantiles into gammas with a known density on [gamma_min, gamma_max].

    Subclasses have a field `quantiles`: where the uniform numbers come from.
    """

    quantiles: AbstractQuantiles

    @abc.abstractmethod
    def gamma_and_density(
        self, u: types.PerExample, time: AbstractTime, weight: Weight
    ) -> tuple[types.PerExample, types.PerExample]:
        """gamma at quantile u in [0, 1), increasing in u, and its probability density per nat."""
