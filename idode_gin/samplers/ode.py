"""Sampling along the probability-flow ODE, its inverse, and the density of samples."""

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
    """Noise that `from_noise` maps to them; standard normal if the model is exact."""
    num_evaluations: Integer[Array, " batch"]
    """Network evaluations."""
    success: Bool[Array, " batch"]
    """True if the solver reached the end."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class ODESampler(base.AbstractDeterministicSampler):
    """Integrates the ODE from noise to images, and back.

    The images are the same in every integration variable, up to the solver's error.

    Args:
        solver: solver of the ODE.
        variable: variable that the ODE is integrated in.
        lanes: images integrated at the same time, for any batch size; None for the whole batch.
    """

    solver: AbstractSolver = dataclasses.field(default_factory=DormandPrince)
    variable: variables.AbstractIntegrationVariable = dataclasses.field(default_factory=Exponential)
    lanes: int | None = None

    def __post_init__(self) -> None:
        checks.check_lanes(self.lanes)

    def with_log_prob(self, divergence: AbstractDivergence) -> "ODESamplerWithDensity":
        """Return a sampler of the same images, up to the solver's error, with log-density."""
        return ODESamplerWithDensity(
            solver=self.solver, divergence=divergence, variable=self.variable, lanes=self.lanes
        )

    def from_noise(
        self, field: ode.Field, end: CleanEnd, gamma_max: float, noise: types.Images
    ) -> base.Samples:
        """Map standard normal `noise` to images."""
        start = _scale(field, gamma_max, noise) * noise
        latent, solution = self._solve(field, start, gamma_max, end.gamma_number)
        return _samples(end, solution, latent)

    def to_noise(
        self, field: ode.Field, end: CleanEnd, gamma_max: float, latent: types.Images
    ) -> Encoded:
        """Return the noise that `from_noise` maps to `latent` at the clean end."""
        found, solution = self._solve(field, latent, end.gamma_number, gamma_max)
        return Encoded(
            noise=found / _scale(field, gamma_max, latent),
            num_evaluations=solution.num_evaluations,
            success=solution.success,
        )

    def _solve(
        self, field: ode.Field, z: types.Images, start: float, stop: float
    ) -> tuple[types.Images, Solution]:
        """Return z at `stop`, and the solution in the integration variable."""
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
            weight_fns=(self.variable.weight_fn(field),),
        )
        return solution.state * span.scale_end, solution


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class ODESamplerWithDensity(base.AbstractSampler):
    """Samples images as `ODESampler` does, with log p of their latents from the same solve.

        log p(z_0) = log N(z_1; 0, sigma_1^2 I) + integral of the drift's divergence, 0 to 1

    in nats: a density of the real-valued latent z at the clean end, not a probability of pixels.
    `likelihood.log_density` gives the same number with the same probes, up to the errors of both
    solvers. The log-density per dim is part of the solver's state.

    Args:
        solver: solver of the ODE.
        divergence: method for the trace; each image has its own probes.
        variable: variable that the ODE is integrated in.
        lanes: images integrated at the same time, for any batch size; None for the whole batch.
    """

    solver: AbstractSolver = dataclasses.field(default_factory=DormandPrince)
    divergence: AbstractDivergence = dataclasses.field(default_factory=Hutchinson)
    variable: variables.AbstractIntegrationVariable = dataclasses.field(default_factory=Exponential)
    lanes: int | None = None

    def __post_init__(self) -> None:
        checks.check_lanes(self.lanes)

    def with_log_prob(self, divergence: AbstractDivergence) -> "ODESamplerWithDensity":
        """Return this sampler with another method for the trace."""
        return dataclasses.replace(self, divergence=divergence)

    def __call__(
        self,
        field: ode.Field,
        end: CleanEnd,
        gamma_max: float,
        shape: tuple[int, ...],
        keys: types.PRNGKeys,
    ) -> base.Samples:
        """Sample one image of `shape` (H, W, C) per key, with its log-density."""
        noise = base.start_noise(keys, shape)
        return self.from_noise(field, end, gamma_max, noise, self.probes(keys, shape))

    def probes(self, keys: types.PRNGKeys, shape: tuple[int, ...]) -> Probes:
        """Draw the probes of images of `shape`, `[n, B, H, W, C]`."""
        return self.divergence.draw(base.step_keys(keys, 0), shape)

    def from_noise(
        self,
        field: ode.Field,
        end: CleanEnd,
        gamma_max: float,
        noise: types.Images,
        probes: Probes,
    ) -> base.Samples:
        """Map standard normal `noise` to images, with their log-density."""
        dims = numerics.num_dims(noise)
        problem = Problem.of(
            field, gamma_max, end.gamma_number, self.variable, self.divergence, dims
        )
        sigma = _scale(field, gamma_max, noise)
        solution = problem.solve(self.solver, sigma * noise, probes, self.lanes)
        latent, log_det = problem.arrived(solution)  # from 1 to 0: minus the integral
        log_p = numerics.log_normal(noise) - dims * jnp.log(sigma) - log_det
        return _samples(end, solution, latent)._replace(log_p=log_p)


def check_images_alone(method: object) -> None:
    """Raise ValueError unless `method` is a sampler, and one that computes no density."""
    checks.check_kind("method", method, base.AbstractSampler)
    if isinstance(method, ODESamplerWithDensity):
        raise ValueError(
            "`sample` returns images alone, got `method` with `with_log_prob`. Use it without, and "
            "score the images with `bits_per_dim`; `idode_gin.sample` with RETURN_LOG_PROB = True "
            "writes samples with their log-densities."
        )


def _scale(field: ode.Field, gamma: float, like: types.Images) -> Array:
    """Return sigma at `gamma`."""
    return field.schedule.sigma(jnp.asarray(gamma, like.dtype))


def _samples(end: CleanEnd, solution: Solution, latent: types.Images) -> base.Samples:
    return base.Samples(
        pixels=end.encoding.decode(latent / end.alpha),
        latent=latent,
        num_evaluations=solution.num_evaluations,
        success=solution.success,
    )
