"""The contract of a parameterization: an affine map from network output to noise."""

import abc

from idode_gin import numerics, types
from idode_gin.schedules.base import AbstractSchedule


class AbstractParameterization(abc.ABC):
    """What the network's output F means: `eps_hat = a(gamma) F + b(gamma) z`.

    A subclass gives `a` and `b` for any schedule. Target, weight, importance density, second-order
    residual and drift are derived from these two, here or in the layers above.
    """

    @abc.abstractmethod
    def noise_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """a(gamma); never zero."""

    @abc.abstractmethod
    def latent_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """b(gamma)."""

    def weight(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """a^2, so that 1/2 |eps - eps_hat|^2 = 1/2 a^2 |F* - F|^2."""
        return self.noise_scale(schedule, gamma) ** 2

    def noise_hat(
        self,
        schedule: AbstractSchedule,
        gamma: types.PerExample,
        z: types.Images,
        output: types.Images,
    ) -> types.Images:
        """Predicted noise a F + b z."""
        a = numerics.expand(self.noise_scale(schedule, gamma), z)
        b = numerics.expand(self.latent_scale(schedule, gamma), z)
        return a * output + b * z

    def target(
        self,
        schedule: AbstractSchedule,
        gamma: types.PerExample,
        z: types.Images,
        noise: types.Images,
    ) -> types.Images:
        """F* = (eps - b z) / a, the output that predicts `noise` exactly."""
        a = numerics.expand(self.noise_scale(schedule, gamma), z)
        b = numerics.expand(self.latent_scale(schedule, gamma), z)
        return (noise - b * z) / a
