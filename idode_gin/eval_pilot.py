"""A pilot on images of the split that is evaluated, the same on every process."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin import types
from idode_gin.likelihood import ODELikelihood
from idode_gin.models import DiffusionODE
from idode_gin.pilot import Pilot, Report
from idode_gin.runtime import batches as batch_lib
from idode_gin.runtime import data
from idode_gin.solvers.adams import Adams

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
            found, report = _as_first_says(found, report)
        pilot.check_precision(model, report)
        return found, report

    return run


def _batch(split: data.ImageSplit, count: int) -> types.Batch:
    count = min(count, split.num_images)
    index = np.linspace(0, split.num_images - 1, count).round().astype(np.int64)
    batch = next(iter(batch_lib.eval_batches(split, count, index=index)))
    return jax.tree.map(jnp.asarray, batch)


def _as_first_says(estimator: ODELikelihood, report: Report) -> tuple[ODELikelihood, Report]:
    from jax.experimental import multihost_utils

    solver = estimator.solver
    steps = solver.steps if isinstance(solver, Adams) else 0
    precision = math.nan if report.precision_error is None else report.precision_error
    numbers = [steps, report.error, report.bias, report.reference_error, precision]
    told = np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(numbers, np.float32)))
    if isinstance(solver, Adams):
        solver = dataclasses.replace(solver, steps=int(told[0]))
    error, bias, reference_error, precision = (float(each) for each in told[1:])
    report = report._replace(
        solver=str(solver),
        error=error,
        bias=bias,
        reference_error=reference_error,
        precision_error=None if report.precision_error is None else precision,
    )
    return dataclasses.replace(estimator, solver=solver), report


def in_words(report: Report) -> str:
    """The solver and its error, and what to do where the error is too large."""
    said = (
        f"{report.solver}, error {report.error:.1e} bits per dim (mean {report.bias:+.1e}) on "
        f"{report.num_images} images, known to {report.reference_error:.1e}."
    )
    if report.precision_error is not None:
        said += f" The network's coarse arithmetic moves figures by {report.precision_error:.1e}."
    if report.is_within:
        return said
    return (
        f"{said} That is not enough for the {report.tolerance:.1e} asked for: the network is rough "
        "between the steps, or float32 is too coarse. Raise Pilot.max_steps, give a SOLVER with "
        "more steps, or ask for less."
    )
