"""The continuous-time variational bound, also called the SDE likelihood."""

import dataclasses
from typing import final

from idode_gin import checks, numerics, ode, types
from idode_gin.dequantizers.base import CleanEnd
from idode_gin.losses import base
from idode_gin.schedules.time.base import AbstractTime
from idode_gin.time_samplers.base import AbstractTimeSampler
from idode_gin.time_samplers.uniform import Uniform


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class VariationalBound(base.AbstractBound):
    """-log P(x) <= reconstruction + prior + integral of 1/2 |eps - eps_hat|^2 d gamma.

    The integral is estimated at `num_times` gammas per image, equally spaced in the quantiles of
    the time sampler with one random offset per image, so that the result of an image is a pure
    function of its key. Only the distribution of the sampler is used, not its own quantiles.

    Args:
        num_times: gammas per image.
        time_sampler: distribution of the gammas; `uniform_in_gamma.for_bound` chooses one for a
            trained model.
    Refs: VDM, continuous-time bound; maximum-likelihood training of score-based models.
    """

    num_times: int = 16
    time_sampler: AbstractTimeSampler = dataclasses.field(default_factory=Uniform)

    def __post_init__(self) -> None:
        checks.check_count("num_times", self.num_times)

    def num_evaluations(self) -> int:
        """Return one per gamma."""
        return self.num_times

    def __call__(
        self,
        field: ode.Field,
        end: CleanEnd,
        time: AbstractTime,
        x: types.Pixels,
        keys: types.PRNGKeys,
    ) -> base.BoundTerms:
        """Return the terms of the bound with noise from each image's key, nats."""

        def weight(gamma: types.Gamma) -> types.Gamma:
            return field.parameterization.weight(field.schedule, gamma)

        def diffusion(
            f: types.Images, u: types.PerExample, noise: types.Images
        ) -> types.PerExample:
            gamma, density = self.time_sampler.gamma_and_density(u, time, weight)
            return integrand(field, f, gamma, noise) / density

        return base.stratified_bound(field, end, time, x, keys, self.num_times, diffusion)


def integrand(
    field: ode.Field, f: types.Images, gamma: types.PerExample, noise: types.Images
) -> types.PerExample:
    """Return 1/2 |eps - eps_hat|^2, nats per nat of gamma."""
    z = ode.noised(field.schedule, f, gamma, noise)
    return 0.5 * numerics.sum_pixels((noise - field.noise_hat(z, gamma)) ** 2)
