"""The probability-flow ODE, from schedule, parameterization and network."""

import dataclasses
from typing import final

from jaxtyping import Array

from idode_gin import numerics, types
from idode_gin.parameterizations.base import AbstractParameterization
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.solvers.divergence import AbstractDivergence, Probes


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """A network with its meaning: what the losses, the likelihood and the sampler work on.

    Args:
        schedule: the path.
        parameterization: what the output means.
        network: `(z [B,H,W,C], gamma [B]) -> F [B,H,W,C]`, image by image; parameters, conditioning
            and dropout keys are bound already.
    """

    schedule: AbstractSchedule
    parameterization: AbstractParameterization
    network: types.NetworkFn

    def noise_hat(self, z: types.Images, gamma: types.PerExample) -> types.Images:
        """Predicted noise at the latent z."""
        output = self.network(z, gamma)
        return self.parameterization.noise_hat(self.schedule, gamma, z, output)

    def drift(self, z: types.Images, gamma: types.PerExample) -> types.Images:
        """dz/dgamma = (d log alpha / d gamma) z + sigma eps_hat / 2, for every schedule."""
        return self._drift(z, gamma, self.network(z, gamma))

    def drift_and_divergence(
        self,
        z: types.Images,
        gamma: types.PerExample,
        divergence: AbstractDivergence,
        probes: Probes,
    ) -> tuple[types.Images, types.PerExample]:
        """The drift and its divergence; only the network's trace is estimated, the rest is exact.

        divergence = d (d log alpha / d gamma) + sigma (a tr dF/dz + b d) / 2
        """
        output, trace = divergence.value_and_trace(lambda z: self.network(z, gamma), z, probes)
        a = self.parameterization.noise_scale(self.schedule, gamma)
        dims = numerics.num_dims(z)
        total = dims * self._linear_rate(gamma) + self.schedule.sigma(gamma) * a * trace / 2
        return self._drift(z, gamma, output), total

    def _linear_rate(self, gamma: Array) -> Array:
        b = self.parameterization.latent_scale(self.schedule, gamma)
        return self.schedule.dlog_alpha(gamma) + self.schedule.sigma(gamma) * b / 2

    def _drift(self, z: Array, gamma: Array, output: Array) -> Array:
        a = self.parameterization.noise_scale(self.schedule, gamma)
        from_output = self.schedule.sigma(gamma) * a / 2
        return (
            numerics.expand(self._linear_rate(gamma), z) * z
            + numerics.expand(from_output, z) * output
        )


def noised(
    schedule: AbstractSchedule, f: types.Images, gamma: types.PerExample, noise: types.Images
) -> types.Images:
    """The latent z = alpha f + sigma eps at each image's own gamma."""
    alpha = numerics.expand(schedule.alpha(gamma), f)
    sigma = numerics.expand(schedule.sigma(gamma), f)
    return alpha * f + sigma * noise
