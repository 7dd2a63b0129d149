"""The log-density of latents under a probability-flow ODE."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from idode_gin import numerics, ode, types
from idode_gin.integration_variables.base import (
    AbstractIntegrationVariable,
    rate_and_divergences,
    span,
)
from idode_gin.integration_variables.gamma import Gamma
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.base import AbstractSolver, Solution, WeightFn
from idode_gin.solvers.divergence import AbstractDivergence, Probes, Traces

_GAMMA = Gamma()


class Density(NamedTuple):
    """The log-density of latents under the ODE, per image."""

    log_p: types.PerExample
    """log p(z), nats."""
    latent: types.Images
    """The latent at the noise end, where the ODE took z."""
    log_prior: types.PerExample
    """Log-density of `latent` under the prior, nats."""
    log_det: types.PerExample
    """log p(z) - log_prior, nats."""
    log_dets: Traces
    """`log_det` by each probe, nats; one column if the trace is exact."""
    num_evaluations: Integer[Array, " batch"]
    """Network evaluations, each with its trace."""
    success: Bool[Array, " batch"]
    """True if the solver reached the end."""


def log_density(
    field: ode.Field,
    z: types.Images,
    gamma_start: float,
    gamma_end: float,
    solver: AbstractSolver,
    divergence: AbstractDivergence,
    probes: Probes,
    variable: AbstractIntegrationVariable = _GAMMA,
    lanes: int | None = None,
) -> Density:
    """Return log p(z) of latents at `gamma_start`, with the prior N(0, sigma^2 I) at `gamma_end`.

        log p(z) = log N(z_end; 0, sigma_end^2 I) + integral of the drift's divergence

    The ODE is integrated for y = z / m in the time of `variable`, and d log(m_end / m_start) is
    added. The log-density per dim is part of the solver's state, once per estimate of the trace, so
    its tolerances are in nats per dim.

    Args:
        field: the ODE.
        z: latents `[B, H, W, C]`.
        gamma_start: gamma of z, nats.
        gamma_end: gamma of the noise end, nats.
        solver: solver of the ODE.
        divergence: method for the trace.
        probes: result of `divergence.draw`, `[n, B, H, W, C]`.
        variable: variable that the ODE is integrated in.
        lanes: images integrated at the same time; None for all.

    Raises:
        ValueError: unless gamma_start < gamma_end, and alpha is above zero at both.
    Refs: FFJORD, instantaneous change of variables.
    """
    if not gamma_start < gamma_end:
        raise ValueError(
            f"The ODE of a likelihood must start below its noise end, got {gamma_start=} and "
            f"{gamma_end=}."
        )
    dims = numerics.num_dims(z)
    problem = Problem.of(field, gamma_start, gamma_end, variable, divergence, dims)
    return problem.density_of(problem.solve(solver, z, probes, lanes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """The log-density as an initial-value problem in an integration variable."""

    field: ode.Field
    variable: AbstractIntegrationVariable
    divergence: AbstractDivergence
    dims: int
    time_start: float
    time_end: float
    scale_start: float
    """m at the start."""
    scale_end: float
    sigma_end: float

    @classmethod
    def of(
        cls,
        field: ode.Field,
        gamma_start: float,
        gamma_end: float,
        variable: AbstractIntegrationVariable,
        divergence: AbstractDivergence,
        dims: int,
    ) -> "Problem":
        """Return the problem for images of `dims` values between two gammas."""
        with jax.ensure_compile_time_eval():
            sigma_end = float(field.schedule.sigma(jnp.asarray(gamma_end, numerics.float_dtype())))
        found = span(variable, field, gamma_start, gamma_end)
        if not min(found.scale_start, found.scale_end, sigma_end) > 0:
            raise ValueError(
                "alpha and sigma must be above zero where the ODE starts and ends, got gammas of "
                f"{gamma_start:g} and {gamma_end:g}, where one of them is too small for "
                f"{numerics.float_dtype()}."
            )
        return cls(
            field=field,
            variable=variable,
            divergence=divergence,
            dims=dims,
            **found._asdict(),
            sigma_end=sigma_end,
        )

    @property
    def weight_fns(self) -> tuple[WeightFn, ...]:
        """Known factors of the slopes of the leaves of the state."""
        return (self.variable.weight_fn(self.field), None)

    def start(self, z: types.Images, probes: Probes) -> tuple[Array, Array]:
        """Return the state at the start: y, and the log-density per dim by each estimate."""
        identity = functools.partial(self.divergence.value_and_traces, lambda x: x)
        _, traces = jax.eval_shape(identity, z, probes)
        return z / self.scale_start, jnp.zeros(traces.shape, z.dtype)

    def args(self, probes: Probes) -> tuple[Any, ...]:
        """Return the arguments of `rate`, one row per example."""
        return self.field.args, jnp.moveaxis(probes, 0, 1)

    def rate(
        self, time: types.PerExample, state: tuple[Array, Array], args: Any, probes: Array
    ) -> tuple[Array, Array]:
        """Return the slope of the state."""
        slope, traces = rate_and_divergences(
            self.variable,
            self.field.with_args(args),
            time,
            state[0],
            self.divergence,
            jnp.moveaxis(probes, 1, 0),
        )
        return slope, traces / self.dims

    def solve(
        self, solver: AbstractSolver, z: types.Images, probes: Probes, lanes: int | None
    ) -> Solution:
        """Integrate from `z` at the start to the end."""
        return solver.solve(
            self.rate,
            self.start(z, probes),
            self.time_start,
            self.time_end,
            self.args(probes),
            lanes=lanes,
            weight_fns=self.weight_fns,
        )

    def prepared(self, grid: Adams, length: int) -> AbstractSolver:
        """Return `grid` for this problem, with room for `length` steps; see `Adams.prepared`."""
        return grid.prepared(self.time_start, self.time_end, self.weight_fns, length)

    def arrived(self, solution: Solution) -> tuple[types.Images, types.PerExample]:
        """Return z at the end, and the integral of the drift's divergence, nats."""
        return solution.state[0] * self.scale_end, jnp.mean(self._log_dets(solution), axis=1)

    def density_of(self, solution: Solution) -> Density:
        """Return the log-density of a solution."""
        latent, log_det = self.arrived(solution)
        log_sigma = self.dims * math.log(self.sigma_end)
        log_prior = numerics.log_normal(latent / self.sigma_end) - log_sigma
        return Density(
            log_p=log_prior + log_det,
            latent=latent,
            log_prior=log_prior,
            log_det=log_det,
            log_dets=self._log_dets(solution),
            num_evaluations=solution.num_evaluations,
            success=solution.success,
        )

    def _log_dets(self, solution: Solution) -> Traces:
        scales = self.dims * (math.log(self.scale_end) - math.log(self.scale_start))
        return self.dims * solution.state[1] + scales
