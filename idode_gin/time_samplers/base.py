"""The interface of a time sampler."""

import abc
from collections.abc import Callable
from typing import ClassVar, TypeAlias

from idode_gin import types
from idode_gin.schedules.time.base import AbstractTime
from idode_gin.time_samplers.quantiles.base import AbstractQuantiles

Weight: TypeAlias = Callable[[types.Gamma], types.Gamma]
"""gamma -> a(gamma)^2, elementwise: the weight of a squared error of the output."""


class AbstractTimeSampler(abc.ABC):
    """Maps uniform quantiles to gammas with a known sampling density on [gamma_min, gamma_max].

    Subclasses have a field `quantiles`, the source of the uniform numbers.

    Class variables:
        uses_gamma_of_t: False if gamma depends on `time` by its two ends alone.
        samples_t: True if gamma is gamma(t) of a uniform t, so that its density is dt / dgamma,
            which a learned gamma(t) shapes.
    """

    uses_gamma_of_t: ClassVar[bool] = True
    samples_t: ClassVar[bool] = True
    quantiles: AbstractQuantiles

    @abc.abstractmethod
    def gamma_and_density(
        self, u: types.PerExample, time: AbstractTime, weight: Weight
    ) -> tuple[types.PerExample, types.PerExample]:
        """Return gamma at quantile u in [0, 1), increasing in u, and its density per nat."""
