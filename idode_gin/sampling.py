"""Noise to images along the probability-flow ODE."""

import dataclasses
from typing import NamedTuple, final

import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from idode_gin import numerics, ode, types
from idode_gin.dequantizers.base import CleanEnd
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.base import AbstractSolver


class Samples(NamedTuple):
    """Images from the ODE, per image."""

    pixels: types.Pixels
    """Decoded levels, 0 … V-1."""
    latent: types.Images
    """z at the clean end."""
    num_evaluations: Integer[Array, " batch"]
    """Network evaluations."""
    success: Bool[Array, " batch"]
    """Whether the solver arrived."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class ODESampler:
    """Draws sigma_1 N(0, I) at the noise end and integrates to the clean end.

    Args:
        solver: of the ODE.
    """

    solver: AbstractSolver = dataclasses.field(default_factory=DormandPrince)

    def __call__(
        self,
        field: ode.Field,
        end: CleanEnd,
        gamma_max: float,
        shape: tuple[int, ...],
        keys: types.PRNGKeys,
    ) -> Samples:
        """One image of `shape` (H, W, C) per key."""
        return self.from_noise(field, end, gamma_max, numerics.normal_each(keys, shape))

    def from_noise(
        self, field: ode.Field, end: CleanEnd, gamma_max: float, noise: types.Images
    ) -> Samples:
        """The images that standard normal `noise` becomes."""
        sigma = field.schedule.sigma(jnp.asarray(gamma_max, noise.dtype))

        def drift(gamma: types.PerExample, z: types.Images) -> types.Images:
            return field.drift(z, gamma)

        solution = self.solver.solve(drift, sigma * noise, gamma_max, end.gamma_min)
        return Samples(
            pixels=end.encoding.decode(solution.state / end.alpha),
            latent=solution.state,
            num_evaluations=solution.num_evaluations,
            success=solution.success,
        )
