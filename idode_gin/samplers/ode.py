"""Noise to images along the probability-flow ODE, back, and with their density."""

import dataclasses
from typing import NamedTuple, final

import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from idode_gin import checks, numerics, ode, types
from idode_gin.dequantizers.base import CleanEnd
from idode_gin.integration_variables import base as variables
from idode_gin.integration_variables.exponential import Exponential
from idode_gin.likelihood.density import Problem
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

    The images are the same in every integration variable, up to the solver's error.

    Args:
        solver: of the ODE.
        variable: what the ODE is integrated in.
        lanes: images that are solved side by side, whatever the batch; None for all of it.
    """

    solver: AbstractSolver = dataclasses.field(default_factory=DormandPrince)
    variable: variables.AbstractIntegrationVariable = dataclasses.field(default_factory=Exponential)
    lanes: int | None = None

    def __post_init__(self) -> None:
        """Checks the lanes."""
        checks.check_lanes(self.lanes)

    def with_log_prob(self, divergence: AbstractDivergence) -> "ODESamplerWithDensity":
        """The same images, up to the solver's error, and their log-density."""
        return ODESamplerWithDensity(
            solver=self.solver, divergence=divergence, variable=self.variable, lanes=self.lanes
        )

    def from_noise(
        self, field: ode.Field, end: CleanEnd, gamma_max: float, noise: types.Images
    ) -> base.Samples:
        """The images that standard normal `noise` becomes."""
        start = _scale(field, gamma_max, noise) * noise
        latent, solution = self._solve(field, start, gamma_max, end.gamma_min)
        return _samples(end, solution, latent)

    def to_noise(
        self, field: ode.Field, end: CleanEnd, gamma_max: float, latent: types.Images
    ) -> Encoded:
        """The noise that `from_noise` makes the latents `z` at the clean end of."""
        found, solution = self._solve(field, latent, end.gamma_min, gamma_max)
        return Encoded(
            noise=found / _scale(field, gamma_max, latent),
            num_evaluations=solution.num_evaluations,
            success=solution.success,
        )

    def _solve(
        self, field: ode.Field, z: types.Images, start: float, stop: float
    ) -> tuple[types.Images, Solution]:
        """z at `stop`, and the solution in the integration variable's terms."""
        span = variables.span(self.variable, field, start, stop)

        def rate(time: types.PerExample, y: types.Images, *args: Array) -> types.Images:
            return variables.rate(self.variable, field.with_args(args), time, y)

        solution = self.solver.solve(
            rate,
            z / span.scale_start,
            span.time_start,
            span.time_end,
            field.args,
            lanes=self.lanes,
            densities=(self.variable.density(field),),
        )
        return solution.state * span.scale_end, solution


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
        variable: what the ODE is integrated in.
        lanes: images that are solved side by side, whatever the batch; None for all of it.
    """

    solver: AbstractSolver = dataclasses.field(default_factory=DormandPrince)
    divergence: AbstractDivergence = dataclasses.field(default_factory=Hutchinson)
    variable: variables.AbstractIntegrationVariable = dataclasses.field(default_factory=Exponential)
    lanes: int | None = None

    def __post_init__(self) -> None:
        """Checks the lanes."""
        checks.check_lanes(self.lanes)

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
        problem = Problem.of(field, gamma_max, end.gamma_min, self.variable, self.divergence, dims)
        sigma = _scale(field, gamma_max, noise)
        solution = problem.solve(self.solver, sigma * noise, probes, self.lanes)
        latent, log_det = problem.arrived(solution)  # from 1 to 0: minus the integral
        log_p = numerics.log_normal(noise) - dims * jnp.log(sigma) - log_det
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
