"""The discrete-time variational bound of a diffusion with T steps."""

import dataclasses
from typing import final

import jax.numpy as jnp

from idode_gin import checks, numerics, ode, types
from idode_gin.dequantizers.base import CleanEnd
from idode_gin.losses import base
from idode_gin.schedules.time.base import AbstractTime


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteTime(base.AbstractBound):
    """The bound of the T-step chain, t = i / T and s = (i - 1) / T:

        sum over steps of 1/2 expm1(gamma_t - gamma_s) |eps - eps_hat|^2

    Each image is evaluated at `num_times` random, equally spaced steps; with `num_times = T` at
    every step once. The bound decreases to the continuous one as T grows.

    Args:
        steps: T.
        num_times: number of steps evaluated per image; their mean is scaled by T.
    Refs: VDM, discrete-time loss.
    """

    steps: int
    num_times: int = 16

    def __post_init__(self) -> None:
        checks.check_count("steps", self.steps)
        checks.check_count("num_times", self.num_times)
        if self.num_times > self.steps:
            raise ValueError(
                f"`num_times` must be at most `steps`, got num_times={self.num_times} and "
                f"steps={self.steps}: num_times = steps evaluates every step once."
            )

    def num_evaluations(self) -> int:
        """Return one per step."""
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

        def diffusion(
            f: types.Images, u: types.PerExample, noise: types.Images
        ) -> types.PerExample:
            step = jnp.clip(jnp.floor(u * self.steps), 0, self.steps - 1)
            gamma_s, gamma_t = time.gamma(step / self.steps), time.gamma((step + 1) / self.steps)
            z = ode.noised(field.schedule, f, gamma_t, noise)
            error = numerics.sum_pixels((noise - field.noise_hat(z, gamma_t)) ** 2)
            return 0.5 * self.steps * jnp.expm1(gamma_t - gamma_s) * error

        return base.stratified_bound(field, end, time, x, keys, self.num_times, diffusion)
