"""Heun's method in kappa."""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from idode_gin import checks, ode, types
from idode_gin.dequantizers.base import CleanEnd
from idode_gin.samplers import base
from idode_gin.samplers.grids import AbstractGrid, PowerOfKappa


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun(base.AbstractDeterministicSampler):
    """Heun's method, order 2, for dy/dkappa = eps_hat with kappa = sigma / alpha, y = z / alpha.

        y' = y_i + (kappa_{i+1} - kappa_i) eps_hat(y_i, kappa_i)
        y_{i+1} = y_i + (kappa_{i+1} - kappa_i) (eps_hat(y_i, kappa_i) + eps_hat(y', kappa_{i+1}))/2

    The clean end has kappa > 0, so the last step is like the others.

    Args:
        steps: number of steps, two network evaluations each.
        grid: gammas of the steps; by default equal steps of kappa^{1/7}.

    Refs: EDM, the deterministic sampler.
    """

    steps: int = 32
    grid: AbstractGrid = dataclasses.field(default_factory=PowerOfKappa)

    def __post_init__(self) -> None:
        checks.check_integer("steps", self.steps, at_least=1)

    def from_noise(
        self, field: ode.Field, end: CleanEnd, gamma_max: float, noise: types.Images
    ) -> base.Samples:
        """Map standard normal `noise` to images."""
        gammas = self.grid.gammas(gamma_max, end.gamma_number, self.steps)
        kappas = base.kappas(gammas)
        gamma, size = base.along(gammas, noise), base.along(np.diff(kappas), noise)

        def half(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            # One loop over both halves of all steps, so that the network is compiled once.
            y, guess, slope = carry
            step, is_second = number // 2, number % 2
            here = base.noise_hat(field, guess, gamma[step + is_second])
            mean = jnp.where(is_second, (slope + here) / 2, here)
            moved = y + size[step] * mean
            return jnp.where(is_second, moved, y), moved, here

        start = base.along(kappas[:1], noise) * noise
        y, _, _ = jax.lax.fori_loop(0, 2 * self.steps, half, (start, start, start))
        return base.arrived(end, y, 2 * self.steps)
