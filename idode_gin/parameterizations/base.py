"""The interface of a parameterization, an affine map from network output to noise."""

import abc

import jax.numpy as jnp

from idode_gin import numerics, types
from idode_gin.schedules.base import AbstractSchedule


class AbstractParameterization(abc.ABC):
    """The meaning of the network's output F: `eps_hat = a(gamma) F + b(gamma) z`.

    A subclass defines `a` and `b` for any schedule. Target, weight, importance sampling density,
    second-order residual and drift are derived from these two, here or in higher layers.
    """

    @abc.abstractmethod
    def noise_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return a(gamma), which is never zero."""

    @abc.abstractmethod
    def latent_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return b(gamma)."""

    @abc.abstractmethod
    def natural_log_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return log m such that the ODE of y = z / m has no linear part.

        d log m / d gamma = d log alpha / d gamma + sigma b / 2
        """

    @abc.abstractmethod
    def natural_time(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return the time s, monotone in gamma, with dy/ds = `natural_speed` F; accurate near 0."""

    @abc.abstractmethod
    def natural_gamma(self, schedule: AbstractSchedule, time: types.Gamma) -> types.Gamma:
        """Return gamma at s, the inverse of `natural_time`."""

    def natural_speed(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return one: the output is the velocity."""
        return jnp.ones_like(gamma)

    def weight(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return a^2, so that 1/2 |eps - eps_hat|^2 = 1/2 a^2 |F* - F|^2."""
        return self.noise_scale(schedule, gamma) ** 2

    def noise_hat(
        self,
        schedule: AbstractSchedule,
        gamma: types.PerExample,
        z: types.Images,
        output: types.Images,
    ) -> types.Images:
        """Return the predicted noise a F + b z."""
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
        """Return F* = (eps - b z) / a, the output that predicts `noise` exactly."""
        a = numerics.expand(self.noise_scale(schedule, gamma), z)
        b = numerics.expand(self.latent_scale(schedule, gamma), z)
        return (noise - b * z) / a


class AbstractNoiseMultiple(AbstractParameterization):
    """The output is a multiple of the noise: b = 0, so the ODE of z / alpha has no linear part."""

    def latent_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return b = 0."""
        return jnp.zeros_like(gamma)

    def natural_log_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return log alpha."""
        return jnp.log(schedule.alpha(gamma))

    def natural_time(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return kappa = e^{gamma / 2}."""
        return jnp.exp(gamma / 2)

    def natural_gamma(self, schedule: AbstractSchedule, time: types.Gamma) -> types.Gamma:
        """Return 2 log kappa."""
        return 2 * jnp.log(time)
