"""Pilots on images of the split that is evaluated, with the same outcome on every process."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin import types
from idode_gin.feed import batches as batch_lib
from idode_gin.feed import data
from idode_gin.integration_variables.exponential import Exponential
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot import Pilot, Report
from idode_gin.models import DiffusionODE
from idode_gin.processes import exchange
from idode_gin.solvers import spacings
from idode_gin.solvers.adams import Adams

_MANY_STEPS = 256
"""Steps above which a chosen grid is worth a warning: most need a tenth to a fifth of it."""

Run = Callable[[types.Params, str, ODELikelihood], tuple[ODELikelihood, Report]]
"""`(params, name, estimator) -> likelihood with a solver, and its error`: see `Pilot.run`."""
SolverError = Mapping[str, Any]
"""Facts about the error of a likelihood's solver, such as `error` in bits per dim."""


class Chosen(NamedTuple):
    """A likelihood with the solver it is scored with; the solver's error, if it was measured."""

    estimator: ODELikelihood
    error: SolverError | None


def choose(
    run: Run | None, params: types.Params, likelihoods: Mapping[str, ODELikelihood]
) -> dict[str, Chosen]:
    """Run the pilot for every likelihood; without one, keep the solvers and measure nothing."""
    chosen = {}
    for name, each in likelihoods.items():
        estimator, error = each, None
        if run is not None:
            estimator, report = run(params, name, each)
            error = {**report._asdict(), "is_within": report.is_within}
        chosen[name] = Chosen(estimator, error)
    return chosen


def runner(
    pilot: Pilot,
    model: DiffusionODE,
    split: data.ImageSplit,
    key_of: Callable[[str], types.PRNGKey],
) -> Run:
    """Return a function that runs the pilot and prints its report; compiled once for all calls.

    The pilot's images are spread evenly over the split. It runs on one device of each process,
    whatever the mesh; all processes use the outcome of process 0.
    `key_of` gives the evaluation's random key of a likelihood by its name.

    Raises:
        ValueError: if the network's arithmetic is too coarse: see `Pilot.check_precision`.
    """
    count = min(pilot.num_images, split.num_images)
    prepared: dict[str, Callable[[types.Params], tuple[ODELikelihood, Report]]] = {}

    def run(
        params: types.Params, name: str, estimator: ODELikelihood
    ) -> tuple[ODELikelihood, Report]:
        known = f"{name} {estimator}"
        if known not in prepared:
            index = np.linspace(0, split.num_images - 1, count).round().astype(np.int64)
            batch = next(batch_lib.eval_batches(split, count, index=index))
            batch = jax.tree.map(jnp.asarray, batch)
            prepared[known] = pilot.prepared(model, batch, key_of(name), estimator)
        found, report = prepared[known](jax.device_get(params))
        if jax.process_count() > 1:
            found, report = _of_first(found, report, estimator.solver is None)
        pilot.check_precision(model, report)
        more = warning(found, pilot) if estimator.solver is None else ""
        print(f"{name}: {in_words(report)}{more}", flush=True)
        return found, report

    return run


def _of_first(
    estimator: ODELikelihood, report: Report, is_chosen: bool
) -> tuple[ODELikelihood, Report]:
    """Return the outcome of process 0: rounding may lead the others to a different one."""
    solver = estimator.solver
    chosen = solver if is_chosen and isinstance(solver, Adams) else None
    content = json.dumps([report, chosen and chosen.steps], default=float).encode()
    values, steps = json.loads(exchange.from_first(lambda: content))
    report = Report(*values)
    if report.spacing is not None:
        report = report._replace(spacing=tuple(report.spacing))
    if chosen is not None:
        table = report.spacing
        spacing = spacings.Equal() if table is None else spacings.Tabulated(table=table)
        grid = dataclasses.replace(chosen, steps=steps, spacing=spacing)
        estimator = dataclasses.replace(estimator, solver=grid)
    return estimator, report


def in_words(report: Report) -> str:
    """Return the solver and its error as text, with advice if the error is too large."""
    shown = (
        f"{report.solver}, error {report.error:.1e} bits per dim (mean {report.bias:+.1e}) on "
        f"{report.num_images} images, known to within {report.reference_error:.1e}."
    )
    if report.precision_error is not None:
        shown += f" Arithmetic coarser than float32 adds an error of {report.precision_error:.1e}."
    if report.is_within:
        return shown
    return (
        f"{shown} This exceeds the tolerance of {report.tolerance:.1e}: the network is rough "
        "between the steps, or float32 is too coarse. Raise Pilot.max_steps, bind a SOLVER with "
        "more steps, or raise the tolerance."
    )


def warning(estimator: ODELikelihood, pilot: Pilot) -> str:
    """Return a line that warns of a chosen grid with many steps, with remedies; else ""."""
    solver, variable = estimator.solver, estimator.variable
    if not isinstance(solver, Adams) or solver.steps <= _MANY_STEPS:
        return ""
    ways = ["a larger BPD_TOLERANCE"]
    if not pilot.fit_spacing:
        ways.insert(0, "--gin.Pilot.fit_spacing=True")
    if not isinstance(variable, Exponential):
        ways.insert(0, "--gin_file=gin_configs/integration_variables/exponential.gin")
    return (
        f"\nwarning: each image needs {solver.steps} steps, with one network evaluation each, in "
        f"{type(variable).__name__}. To need fewer, stop and use: {', or '.join(ways)}."
    )
