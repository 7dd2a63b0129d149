"""Noise to images along the probability-flow ODE, back, and with their density."""

import dataclasses
from typing import NamedTuple, final

import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from idode_gin import numerics, ode, types
from idode_gin.dequantizers.base import CleanEnd
from idode_gin.samplers import base
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.base import AbstractSolver, Solution
from idode_gin.solvers.divergence import AbstractDivergence, Hutchinson, Probes


class Encoded(NamedTuple):
    """Latents taken to the noise end, per image."""

    noise: types.Images
    """What `from_noise` makes them of: about standard normal, where the model is right."""
    num_evaluations: Integer[Array, " batch"]
    """Network evaluations."""
    success: Bool[Array, " batch"]
    """Whether the solver arrived."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class ODESampler(base.AbstractDeterministicSampler):
    """Draws sigma_1 N(0, I) at the noise end and integrates to the clean end; and the way back.

    Args:
        solver: of the ODE.
    """

    solver: AbstractSolver = dataclasses.field(default_factory=DormandPrince)

    def with_log_prob(self, divergence: AbstractDivergence) -> "ODESamplerWithDensity":
        """The same images, up to the solver's error, and their log-density."""
        return ODESamplerWithDensity(solver=self.solver, divergence=divergence)

    def from_noise(
        self, field: ode.Field, end: CleanEnd, gamma_max: float, noise: types.Images
    ) -> base.Samples:
        """The images that standard normal `noise` becomes."""
        start = _scale(field, gamma_max, noise) * noise
        solution = self._solve(field, start, gamma_max, end.gamma_min)
        return _samples(end, solution, solution.state)

    def to_noise(
        self, field: ode.Field, end: CleanEnd, gamma_max: float, latent: types.Images
    ) -> Encoded:
        """The noise that `from_noise` makes the latents `z` at the clean end of."""
        solution = self._solve(field, latent, end.gamma_min, gamma_max)
        return Encoded(
            noise=solution.state / _scale(field, gamma_max, latent),
            num_evaluations=solution.num_evaluations,
            success=solution.success,
        )

    def _solve(self, field: ode.Field, z: types.Images, start: float, stop: float) -> Solution:
        return self.solver.solve(lambda gamma, z: field.drift(z, gamma), z, start, stop)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class ODESamplerWithDensity(base.AbstractSampler):
    """The images of `ODESampler`, and log p of their latents from the same solve.

        log p(z_0) = log N(z_1; 0, sigma_1^2 I) + integral of the drift's divergence, 0 to 1

    in nats: a density of the real-valued latent z at the clean end, not a probability of pixels.
    `likelihood.log_density` finds the same number for it, with the same probes and up to both
    solvers' errors. The log-density per dim is part of the solver's state, as there.

    Args:
        solver: of the ODE.
        divergence: how the trace is taken; each image has its own probes.
    """

    solver: AbstractSolver = dataclasses.field(default_factory=DormandPrince)
    divergence: AbstractDivergence = dataclasses.field(default_factory=Hutchinson)

    def with_log_prob(self, divergence: AbstractDivergence) -> "ODESamplerWithDensity":
        """The same sampler, with the trace taken in this way."""
        return dataclasses.replace(self, divergence=divergence)

    def __call__(
        self,
        field: ode.Field,
        end: CleanEnd,
        gamma_max: float,
        shape: tuple[int, ...],
        keys: types.PRNGKeys,
    ) -> base.Samples:
        """One image of `shape` (H, W, C) per key, and its log-density."""
        noise = base.start_noise(keys, shape)
        return self.from_noise(field, end, gamma_max, noise, self.probes(keys, shape))

    def probes(self, keys: types.PRNGKeys, shape: tuple[int, ...]) -> Probes:
        """The probes of images of `shape` with these keys, `[n, B, H, W, C]`."""
        return self.divergence.draw(base.step_keys(keys, 0), shape)

    def from_noise(
        self,
        field: ode.Field,
        end: CleanEnd,
        gamma_max: float,
        noise: types.Images,
        probes: Probes,
    ) -> base.Samples:
        """The images that standard normal `noise` becomes, and their log-density."""
        dims = numerics.num_dims(noise)

        def rate(gamma: types.PerExample, state: tuple[Array, Array]) -> tuple[Array, Array]:
            drift, trace = field.drift_and_divergence(state[0], gamma, self.divergence, probes)
            return drift, trace / dims

        sigma = _scale(field, gamma_max, noise)
        start = sigma * noise, jnp.zeros(noise.shape[0], noise.dtype)
        solution = self.solver.solve(rate, start, gamma_max, end.gamma_min)
        latent, log_det_per_dim = solution.state  # from 1 to 0: minus the integral
        log_p = numerics.log_normal(noise) - dims * (jnp.log(sigma) + log_det_per_dim)
        return _samples(end, solution, latent)._replace(log_p=log_p)


def _scale(field: ode.Field, gamma: float, like: types.Images) -> Array:
    """sigma at `gamma`."""
    return field.schedule.sigma(jnp.asarray(gamma, like.dtype))


def _samples(end: CleanEnd, solution: Solution, latent: types.Images) -> base.Samples:
    return base.Samples(
        pixels=end.encoding.decode(latent / end.alpha),
        latent=latent,
        num_evaluations=solution.num_evaluations,
        success=solution.success,
    )
