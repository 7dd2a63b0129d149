"""The probability-flow ODE of a schedule, a parameterization and a network.

    dz/dgamma = (d log alpha / d gamma) z + sigma eps_hat / 2 = linear_rate z + output_rate F

`integration_variables` states it in other variables, with its divergence.
"""

import dataclasses
from typing import Any, final

from jaxtyping import Array

from idode_gin import numerics, types
from idode_gin.parameterizations.base import AbstractParameterization
from idode_gin.schedules.base import AbstractSchedule


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """A network together with the meaning of its output.

    Args:
        schedule: the path.
        parameterization: meaning of the output.
        network: `(z [B,H,W,C], gamma [B], *args) -> F [B,H,W,C]`, image by image; parameters and
            dropout keys are bound.
        args: further arguments of the network, such as conditioning; arrays `[B, ...]`, one row per
            image. A solver that reorders images reorders these as well.
    """

    schedule: AbstractSchedule
    parameterization: AbstractParameterization
    network: types.NetworkFn
    args: tuple[Any, ...] = ()

    def with_args(self, args: tuple[Any, ...]) -> "Field":
        """Return this field with the arguments of other images."""
        return dataclasses.replace(self, args=args)

    def output(self, z: types.Images, gamma: types.PerExample) -> types.Images:
        """Return F, the output of the network.

        Raises:
            ValueError: if it has another shape than z, where it would be broadcast.
        """
        output = self.network(z, gamma, *self.args)
        if (shape := getattr(output, "shape", None)) != z.shape:
            raise ValueError(
                f"The network must return one number for each of z, {list(z.shape)}, got "
                f"{type(output).__name__ if shape is None else list(shape)}."
            )
        return output

    def noise_hat(self, z: types.Images, gamma: types.PerExample) -> types.Images:
        """Return the predicted noise at the latent z."""
        output = self.output(z, gamma)
        return self.parameterization.noise_hat(self.schedule, gamma, z, output)

    def linear_rate(self, gamma: Array) -> Array:
        """Return d log alpha / d gamma + sigma b / 2, the coefficient of z in the drift."""
        b = self.parameterization.latent_scale(self.schedule, gamma)
        return self.schedule.dlog_alpha(gamma) + self.schedule.sigma(gamma) * b / 2

    def output_rate(self, gamma: Array) -> Array:
        """Return sigma a / 2, the coefficient of F in the drift."""
        a = self.parameterization.noise_scale(self.schedule, gamma)
        return self.schedule.sigma(gamma) * a / 2


def noised(
    schedule: AbstractSchedule, f: types.Images, gamma: types.PerExample, noise: types.Images
) -> types.Images:
    """Return the latent z = alpha f + sigma eps at each image's own gamma."""
    alpha = numerics.expand(schedule.alpha(gamma), f)
    sigma = numerics.expand(schedule.sigma(gamma), f)
    return alpha * f + sigma * noise
