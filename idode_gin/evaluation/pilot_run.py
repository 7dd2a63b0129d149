"""A pilot on images of the split that is evaluated, the same on every process."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin import types
from idode_gin.feed import batches as batch_lib
from idode_gin.feed import data
from idode_gin.integration_variables.exponential import Exponential
from idode_gin.likelihood import spacing_fit
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot import Pilot, Report
from idode_gin.models import DiffusionODE
from idode_gin.solvers import spacings
from idode_gin.solvers.adams import Adams

_MANY_STEPS = 256
"""That hardly an evaluation needs: the usual ones take a tenth of it, or a fifth."""

Run = Callable[[types.Params, str, ODELikelihood], tuple[ODELikelihood, Report]]
"""`(params, name, estimator) -> the likelihood with a solver, and its error`: see `Pilot.run`."""


def runner(
    pilot: Pilot,
    model: DiffusionODE,
    split: data.ImageSplit,
    key_of: Callable[[str], types.PRNGKey],
) -> Run:
    """Gives a function that runs the pilot, which compiles once for however many checkpoints.

    Its images are spread evenly over the split. It works on one device of each process, whatever
    the mesh, and what the first process finds is what all use.

    Args:
        pilot: to run.
        model: what was trained.
        split: the images.
        key_of: the evaluation's key of the likelihood of that name.

    Raises:
        ValueError: if the network's arithmetic is too coarse: see `Pilot.check_precision`.
    """
    prepared: dict[str, Callable[[types.Params], tuple[ODELikelihood, Report]]] = {}

    def run(
        params: types.Params, name: str, estimator: ODELikelihood
    ) -> tuple[ODELikelihood, Report]:
        known = f"{name} {estimator}"
        if known not in prepared:
            batch = _batch(split, pilot.num_images)
            prepared[known] = pilot.prepared(model, batch, key_of(name), estimator)
        found, report = prepared[known](jax.device_get(params))
        if jax.process_count() > 1:
            report = _as_first_measured(report)
            if estimator.solver is None:
                found, report = _as_first_chose(found, report)
        pilot.check_precision(model, report)
        return found, report

    return run


def _batch(split: data.ImageSplit, count: int) -> types.Batch:
    count = min(count, split.num_images)
    index = np.linspace(0, split.num_images - 1, count).round().astype(np.int64)
    batch = next(iter(batch_lib.eval_batches(split, count, index=index)))
    return jax.tree.map(jnp.asarray, batch)


def _as_first_measured(report: Report) -> Report:
    precision = math.nan if report.precision_error is None else report.precision_error
    errors = [report.error, report.bias, report.reference_error, precision]
    told = _told([*errors, report.num_images])
    return report._replace(
        error=told[0],
        bias=told[1],
        reference_error=told[2],
        precision_error=None if math.isnan(told[3]) else told[3],
        num_images=int(told[4]),
    )


def _as_first_chose(estimator: ODELikelihood, report: Report) -> tuple[ODELikelihood, Report]:
    solver = estimator.solver
    assert isinstance(solver, Adams)
    steps, *table = _told([solver.steps, *(report.spacing or [math.nan] * spacing_fit.POINTS)])
    is_equal = math.isnan(table[0])
    spacing = spacings.Equal() if is_equal else spacings.Tabulated(table=tuple(table))
    solver = dataclasses.replace(solver, steps=int(steps), spacing=spacing)
    report = report._replace(solver=str(solver), spacing=None if is_equal else tuple(table))
    return dataclasses.replace(estimator, solver=solver), report


def _told(numbers: Sequence[float]) -> list[float]:
    """The first process's, on all; as bytes, which no width of numbers rounds."""
    from jax.experimental import multihost_utils

    sent = np.frombuffer(np.asarray(numbers, np.float64).tobytes(), np.uint8)
    told = np.asarray(multihost_utils.broadcast_one_to_all(sent), np.uint8)
    return [float(each) for each in np.frombuffer(told.tobytes(), np.float64)]


def in_words(report: Report) -> str:
    """The solver and its error, and what to do where the error is too large."""
    said = (
        f"{report.solver}, error {report.error:.1e} bits per dim (mean {report.bias:+.1e}) on "
        f"{report.num_images} images, known to {report.reference_error:.1e}."
    )
    if report.precision_error is not None:
        said += f" Arithmetic coarser than float32 moves figures by {report.precision_error:.1e}."
    if report.is_within:
        return said
    return (
        f"{said} That is not enough for the {report.tolerance:.1e} asked for: the network is rough "
        "between the steps, or float32 is too coarse. Raise Pilot.max_steps, give a SOLVER with "
        "more steps, or ask for less."
    )


def warning(estimator: ODELikelihood, pilot: Pilot) -> str:
    """A line on a chosen grid of many steps, and what would need fewer; else nothing."""
    solver, variable = estimator.solver, estimator.variable
    if not isinstance(solver, Adams) or solver.steps <= _MANY_STEPS:
        return ""
    ways = ["a larger BPD_TOLERANCE"]
    if not pilot.fit_spacing:
        ways.insert(0, "--gin.Pilot.fit_spacing=True")
    if not isinstance(variable, Exponential):
        ways.insert(0, "--gin_file=gin_configs/integration_variables/exponential.gin")
    return (
        f"\nwarning: every image will take {solver.steps} steps, a network evaluation each; "
        f"fewer are not enough in {type(variable).__name__}. To stop here and take others: "
        f"{', or '.join(ways)}."
    )
