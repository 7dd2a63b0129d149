"""The probability-flow ODE, from schedule, parameterization and network."""

import dataclasses
from typing import Any, final

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
        network: `(z [B,H,W,C], gamma [B], *args) -> F [B,H,W,C]`, image by image; parameters and
            dropout keys are bound already.
        args: what else the network takes, such as conditioning; arrays `[B, ...]`, one row per
            image. A solver that moves images about moves these with them.
    """

    schedule: AbstractSchedule
    parameterization: AbstractParameterization
    network: types.NetworkFn
    args: tuple[Any, ...] = ()

    def with_args(self, args: tuple[Any, ...]) -> "Field":
        """The same field for other images, whose arguments these are."""
        return dataclasses.replace(self, args=args)

    def output(self, z: types.Images, gamma: types.PerExample) -> types.Images:
        """F, what the network gives."""
        return self.network(z, gamma, *self.args)

    def noise_hat(self, z: types.Images, gamma: types.PerExample) -> types.Images:
        """Predicted noise at the latent z."""
        output = self.output(z, gamma)
        return self.parameterization.noise_hat(self.schedule, gamma, z, output)

    def drift(self, z: types.Images, gamma: types.PerExample) -> types.Images:
        """dz/dgamma = (d log alpha / d gamma) z + sigma eps_hat / 2, for every schedule."""
        return self._drift(z, gamma, self.output(z, gamma))

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
        output, trace = divergence.value_and_trace(lambda z: self.output(z, gamma), z, probes)
        total = numerics.num_dims(z) * self.linear_rate(gamma) + self.output_rate(gamma) * trace
        return self._drift(z, gamma, output), total

    def linear_rate(self, gamma: Array) -> Array:
        """d log alpha / d gamma + sigma b / 2, what multiplies z in the drift."""
        b = self.parameterization.latent_scale(self.schedule, gamma)
        return self.schedule.dlog_alpha(gamma) + self.schedule.sigma(gamma) * b / 2

    def output_rate(self, gamma: Array) -> Array:
        """sigma a / 2, what multiplies F in the drift."""
        a = self.parameterization.noise_scale(self.schedule, gamma)
        return self.schedule.sigma(gamma) * a / 2

    def _drift(self, z: Array, gamma: Array, output: Array) -> Array:
        linear = numerics.expand(self.linear_rate(gamma), z)
        return linear * z + numerics.expand(self.output_rate(gamma), z) * output


def noised(
    schedule: AbstractSchedule, f: types.Images, gamma: types.PerExample, noise: types.Images
) -> types.Images:
    """The latent z = alpha f + sigma eps at each image's own gamma."""
    alpha = numerics.expand(schedule.alpha(gamma), f)
    sigma = numerics.expand(schedule.sigma(gamma), f)
    return alpha * f + sigma * noise
