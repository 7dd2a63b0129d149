"""Ancestral sampling of the discrete-time diffusion."""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from idode_gin import checks, numerics, ode, types
from idode_gin.dequantizers.base import CleanEnd
from idode_gin.samplers import base
from idode_gin.samplers.grids import AbstractGrid, LogSNR


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral(base.AbstractSampler):
    """Draws z_s ~ q(z_s | z_t, f_hat) in T steps, s < t, with noise in each step.

        c = -expm1(gamma_s - gamma_t)
        mean = (alpha_s / alpha_t) (z_t - c sigma_t eps_hat)        variance = sigma_s^2 c

    This is the posterior of the forward process for every schedule. In y = z / alpha and
    kappa = sigma / alpha it does not depend on the schedule: y_t - c kappa_t eps_hat, kappa_s^2 c.

    Args:
        steps: T, one network evaluation each.
        grid: gammas of the steps; by default equal, which is equal in time for a linear gamma(t).

    Refs: VDM, appendix on the generative model in discrete time.
    """

    steps: int = 256
    grid: AbstractGrid = dataclasses.field(default_factory=LogSNR)

    def __post_init__(self) -> None:
        checks.check_integer("steps", self.steps, at_least=1)

    def __call__(
        self,
        field: ode.Field,
        end: CleanEnd,
        gamma_max: float,
        shape: tuple[int, ...],
        keys: types.PRNGKeys,
    ) -> base.Samples:
        """Sample one image of `shape` (H, W, C) per key; each step draws noise per image."""
        gammas = self.grid.gammas(gamma_max, end.gamma_number, self.steps)
        noise = base.start_noise(keys, shape)
        gamma, scale, std = (base.along(each, noise) for each in (gammas, *posterior(gammas)))

        def advance(step: Array, y: types.Images) -> types.Images:
            mean = y - scale[step] * base.noise_hat(field, y, gamma[step])
            return mean + std[step] * numerics.normal_each(base.step_keys(keys, step), shape)

        start = base.along(base.kappas(gammas[:1]), noise) * noise
        y = jax.lax.fori_loop(0, self.steps, advance, start)
        return base.arrived(end, jnp.asarray(y), self.steps)


def posterior(gammas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return c kappa_t, the factor of eps_hat in the mean, and kappa_s sqrt(c), the deviation.

    Both are for y = z / alpha, float64 `[steps]`, between decreasing `gammas` `[steps + 1]`.
    """
    c = -np.expm1(np.diff(gammas))
    kappa = base.kappas(gammas)
    return c * kappa[:-1], np.sqrt(c) * kappa[1:]
