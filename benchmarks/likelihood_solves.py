"""Solves of one case by any solver in any integration variable, compiled once for all settings.

Tolerances and numbers of steps are arguments of the compiled programs, so a sweep does not compile
again, except for Runge-Kutta grids, which compile for every number of steps.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.host_rk45 import HostRK45
from benchmarks.likelihood_case import Case
from idode_gin.integration_variables.base import AbstractIntegrationVariable
from idode_gin.integration_variables.exponential import Exponential
from idode_gin.integration_variables.gamma import Gamma
from idode_gin.integration_variables.kappa import Kappa
from idode_gin.integration_variables.natural import Natural
from idode_gin.likelihood.density import Problem, log_density
from idode_gin.solvers import adams
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.base import AbstractSolver
from idode_gin.solvers.divergence import Hutchinson
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.solvers.norms import AbstractNorm, EveryPart

VARIABLES: dict[str, AbstractIntegrationVariable] = {
    "gamma": Gamma(),
    "kappa": Kappa(),
    "natural": Natural(),
    "exponential": Exponential(),
}
MAX_STEPS = 1024
TRACE = Hutchinson()
BATCHES = (2, 4, 8, 16, 32, 64)
_EVERY_PART = EveryPart()


@dataclasses.dataclass(frozen=True)
class Solve:
    """Result and cost of a solve."""

    setting: str
    """A tolerance or a number of steps."""
    bpd: np.ndarray
    evaluations: np.ndarray
    """Network evaluations of each image."""
    seconds: float


Family = Callable[[float], Solve]
"""One solver in one variable, as a function of a tolerance or a number of steps."""


def dormand_prince(
    case: Case,
    variable: AbstractIntegrationVariable,
    lanes: int | None,
    norm: AbstractNorm = _EVERY_PART,
) -> Family:
    """Return Dormand-Prince with steps per image."""

    @jax.jit
    def run(conditioning: Any, z: Any, probes: Any, tolerance: Any) -> Any:
        solver = DormandPrince(norm=norm)
        object.__setattr__(solver, "rtol", tolerance)  # traced: the constructor would look at it
        object.__setattr__(solver, "atol", tolerance)
        field = case.model.field(case.params, conditioning)
        return log_density(field, z, *case.span, solver, TRACE, probes, variable, lanes)

    return _family(case, run, lambda tolerance: jnp.float32(tolerance), "{:g}")


def adams_grid(case: Case, variable: AbstractIntegrationVariable, lanes: int | None) -> Family:
    """Return Adams with equal steps in the variable."""

    def problem_of(conditioning: Any) -> Problem:
        field = case.model.field(case.params, conditioning)
        return Problem.of(field, *case.span, variable, TRACE, case.dims)

    def prepared(steps: float) -> AbstractSolver:
        grid = adams.Adams(steps=int(steps))
        return problem_of(case.conditioning).prepared(grid, MAX_STEPS)

    @jax.jit
    def run(conditioning: Any, z: Any, probes: Any, solver: AbstractSolver) -> Any:
        problem = problem_of(conditioning)
        return problem.density_of(problem.solve(solver, z, probes, lanes))

    return _family(case, run, prepared, "{:.0f} steps")


def runge_kutta_grid(
    case: Case, variable: AbstractIntegrationVariable, lanes: int | None
) -> Family:
    """Return the classical method of order 4 with equal steps in the variable."""

    def solve(steps: float) -> Solve:
        @jax.jit
        def run(conditioning: Any, z: Any, probes: Any, _: Any) -> Any:
            field, solver = case.model.field(case.params, conditioning), FixedGrid(steps=int(steps))
            return log_density(field, z, *case.span, solver, TRACE, probes, variable, lanes)

        return _family(case, run, lambda _: 0, "{:.0f} steps")(steps)

    return solve


def _family(case: Case, run: Any, prepared: Callable[[float], Any], shown: str) -> Family:
    compiled: list[Any] = []

    def solve(setting: float) -> Solve:
        arguments = (case.conditioning, case.z, case.probes, prepared(setting))
        if not compiled:
            compiled.append(run.lower(*arguments).compile())
        began = time.perf_counter()
        found = jax.block_until_ready(compiled[0](*arguments))
        seconds = time.perf_counter() - began
        if not np.all(found.success):
            raise RuntimeError(f"{shown.format(setting)}: some images did not arrive")
        evaluations = np.asarray(found.num_evaluations, np.float64)
        return Solve(shown.format(setting), case.bpd(found.log_p), evaluations, seconds)

    return solve


FAMILIES: dict[str, tuple[Any, tuple[float, ...]]] = {
    "Dormand-Prince": (dormand_prince, (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)),
    "Adams": (adams_grid, (8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256)),
    "Runge-Kutta 4": (runge_kutta_grid, (8, 16, 32, 64)),
}
"""Solvers with their settings, coarsest first."""


def sweep(
    family: Family, settings: Sequence[float], is_enough: Callable[[Solve], bool], seconds: float
) -> Iterator[Solve]:
    """Solve from the coarsest setting until one is enough or the next would take too long."""
    for setting in settings:
        found = family(setting)
        yield found
        if is_enough(found) or 2 * found.seconds > seconds:
            return


def reference(family: Family, moved_by: float, seconds: float) -> tuple[Solve, float]:
    """Double the steps of Adams until figures change less; return the solve and the change."""
    last, steps = family(32), 64
    while True:
        found = family(steps)
        moved = float(np.mean(np.abs(found.bpd - last.bpd)))
        if moved <= moved_by or 2 * steps > MAX_STEPS or 2 * found.seconds > seconds:
            return found, moved
        last, steps = found, 2 * steps


def host_rk45(case: Case) -> Family:
    """Return RK45 of SciPy, run on the host."""
    host = HostRK45(case.field(), case.probes[0], *case.span)

    def solve(tolerance: float) -> Solve:
        found = host.solve(case.z, tolerance)
        count = np.full(case.count, found.num_evaluations)
        return Solve(f"{tolerance:g}", case.bpd(found.log_p), count, found.seconds)

    return solve


def calls(case: Case) -> dict[int, Callable[[], float]]:
    """Return, by batch size, a compiled call of the network with its trace that returns the seconds
    per image."""
    most = max(case.count, 8)
    return {count: _call(case.take(count)) for count in BATCHES if count <= most}


def _call(case: Case) -> Callable[[], float]:
    @jax.jit
    def call(z: Any, gamma: Any, probes: Any, conditioning: Any) -> Any:
        field = case.model.field(case.params, conditioning)
        return TRACE.value_and_trace(lambda z: field.output(z, gamma), z, probes)

    arguments = (case.z, jnp.zeros(case.count), case.probes, case.conditioning)
    jax.block_until_ready(call(*arguments))

    def seconds() -> float:
        began = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        return (time.perf_counter() - began) / case.count

    return seconds
