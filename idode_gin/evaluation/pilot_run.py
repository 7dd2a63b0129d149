"""Pilots on images of the split that is evaluated, with the same outcome on every process."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from idode_gin import numerics, types
from idode_gin.devices import partitioning
from idode_gin.feed import batches as batch_lib
from idode_gin.feed import data
from idode_gin.integration_variables.exponential import Exponential
from idode_gin.likelihood import pilot_grids
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot import Pilot, Report
from idode_gin.models import DiffusionODE
from idode_gin.processes import exchange
from idode_gin.reports import files, progress
from idode_gin.runs import run_lock
from idode_gin.solvers import spacings
from idode_gin.solvers.adams import Adams

_MANY_STEPS = 256
"""Steps above which a chosen grid is worth a warning: most need a tenth to a fifth of it."""

REMEDIES = "Double Pilot.max_steps at least, bind a SOLVER with more steps, or raise the tolerance."

Run = Callable[..., tuple[ODELikelihood, Report]]
"""`(params, name, estimator, kept=None) -> likelihood with a solver, and its error`."""
SolverError = Mapping[str, Any]
"""Facts about the error of a likelihood's solver, such as `error` in bits per dim."""


class Chosen(NamedTuple):
    """A likelihood with the solver it is scored with; the solver's error, if it was measured."""

    estimator: ODELikelihood
    error: SolverError | None


@dataclasses.dataclass(frozen=True)
class Kept:
    """Outcomes of pilots in files of `folder`, so that an interrupted evaluation need not repeat.

    `facts`, JSON-able, are everything that an outcome depends on beside the likelihood's name.
    """

    folder: pathlib.Path
    facts: Mapping[str, Any]

    def read(self, name: str) -> bytes | None:
        """Return an outcome, or None if there is none with these facts or its file is damaged."""
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            content = self._path(name).read_bytes()
            values, _ = json.loads(content)
            Report(*values)
            return content
        return None

    def write(self, name: str, outcome: bytes) -> None:
        """Write an outcome, atomically. Raises OSError if the output folder was replaced."""
        run_lock.check(self.folder)
        files.write_atomically(self._path(name), outcome)

    def _path(self, name: str) -> pathlib.Path:
        described = json.dumps([name, self.facts], sort_keys=True).encode()
        return self.folder / f"pilot_{hashlib.sha256(described).hexdigest()[:16]}.json"


def choose(
    run: Run | None, params: types.Params, likelihoods: Mapping[str, ODELikelihood], kept: Kept
) -> dict[str, Chosen]:
    """Run the pilot for every likelihood; without one, keep the solvers and measure nothing."""
    chosen = {}
    for name, each in likelihoods.items():
        estimator, error = each, None
        if run is not None:
            estimator, report = run(params, name, each, kept)
            error = {**report._asdict(), "is_within": report.is_within}
        chosen[name] = Chosen(estimator, error)
    return chosen


def runner(
    pilot: Pilot,
    model: DiffusionODE,
    split: data.ImageSplit,
    key_of: Callable[[str], types.PRNGKey],
    solve_size: int,
    indexed: Callable[[types.Batch], types.Batch] | None = None,
) -> Run:
    """Return a function that runs the pilot and prints its report; compiled once for all calls.

    The pilot's images are spread evenly over the split. Every process runs it, on devices of its
    own whatever the mesh; all use the outcome of process 0.
    `key_of` gives the evaluation's random key of a likelihood by its name, `solve_size` the images
    that a device solves together, and `indexed` replaces the `index` of a batch, which keys its
    noise, if the evaluation does.

    Raises:
        ValueError: if the network's arithmetic is too coarse: see `Pilot.check_precision`.
    """
    index = data.spread(pilot.num_images, split.num_images)
    prepared: dict[str, Callable[[types.Params], tuple[ODELikelihood, Report]]] = {}

    def run(
        params: types.Params, name: str, estimator: ODELikelihood, kept: Kept | None = None
    ) -> tuple[ODELikelihood, Report]:
        outcome = b"" if kept is None else exchange.from_first(lambda: kept.read(name))
        more = " Measured before the evaluation was interrupted." if outcome else ""
        if not outcome:
            outcome = measured(params, name, estimator)
            if kept is not None and jax.process_index() == 0:
                kept.write(name, outcome)
        found, report = _unpacked(outcome, estimator)
        pilot.check_precision(model, report)
        more += warning(found, pilot) if estimator.solver is None else _without_fit(pilot)
        print(f"{name}: {in_words(report)}{more}", flush=True)
        return found, report

    def measured(params: types.Params, name: str, estimator: ODELikelihood) -> bytes:
        known = f"{name} {estimator}"
        with progress.phase(f"pilot of {name}"):
            if known not in prepared:
                batch = next(batch_lib.eval_batches(split, len(index), index=index))
                batch = jax.device_put(batch)
                batch = batch if indexed is None else jax.jit(indexed)(batch)
                key = jax.jit(lambda: key_of(name))()  # one program, not one for each operation
                how = watched(name), spread(solve_size, estimator)
                prepared[known] = pilot.prepared(model, batch, key, estimator, *how)
            found, report = prepared[known](jax.device_get(params))
        # Of process 0: rounding may lead the others to a different one.
        return exchange.from_first(lambda: _packed(found, report, estimator.solver is None))

    return run


def spread(solve_size: int, estimator: ODELikelihood) -> pilot_grids.Spread:
    """Return what divides a pilot's images among the devices of this process.

    A device computes at most `solve_size` of them together, or the `lanes` of the likelihood.
    """
    size = min(solve_size, estimator.lanes or solve_size)

    def over_devices(fn: pilot_grids.PerImage) -> pilot_grids.PerImage:
        @functools.wraps(fn)
        def in_parts(given: Any, batch: types.Batch) -> Any:
            if len(batch["index"]) <= size:
                return fn(given, batch)
            return numerics.map_chunks(lambda part: fn(given, part), batch, size)

        return partitioning.over_local_devices(in_parts)

    return over_devices


def watched(name: str) -> Callable[[str], contextlib.AbstractContextManager[Any]]:
    """Return a function that makes a phase of the pilot; the first one also compiles."""
    more = iter([" (compiling first)"])
    return lambda what: progress.phase(f"pilot of {name}, {what}{next(more, '')}")


def _packed(estimator: ODELikelihood, report: Report, is_chosen: bool) -> bytes:
    """Return the outcome of a pilot as JSON; the steps of the solver if it was chosen."""
    solver = estimator.solver
    steps = solver.steps if is_chosen and isinstance(solver, Adams) else None
    return json.dumps([report, steps], default=float).encode()


def _unpacked(content: bytes, estimator: ODELikelihood) -> tuple[ODELikelihood, Report]:
    """Return what `_packed` was given; `estimator` as it was before the pilot."""
    values, steps = json.loads(content)
    report = Report(*values)
    if report.spacing is not None:
        report = report._replace(spacing=tuple(report.spacing))
    if steps is not None:
        table = report.spacing
        spacing = spacings.Equal() if table is None else spacings.Tabulated(table=table)
        estimator = dataclasses.replace(estimator, solver=Adams(steps=steps, spacing=spacing))
    return estimator, report


def in_words(report: Report, remedies: str = REMEDIES) -> str:
    """Return the solver and its error as text, with advice if the error is too large."""
    unknown = report.reference_error + report.rounding
    shown = (
        f"{report.solver}, error {report.error:.1e} bits per dim (mean {report.bias:+.1e}) on "
        f"{report.num_images} images, known to within {unknown:.1e}."
    )
    if report.precision_error is not None:
        shown += f" Arithmetic coarser than float32 adds an error of {report.precision_error:.1e}."
    if report.is_within:
        return shown
    shown += f" This exceeds the tolerance of {report.tolerance:.1e}"
    if report.rounding >= report.error + report.reference_error:
        return (
            f"{shown}, mostly because float32 rounds by {report.rounding:.1e}. Raise the tolerance."
        )
    return f"{shown}: the network is rough between the steps. {remedies}"


def _without_fit(pilot: Pilot) -> str:
    """Return a line that says so if a spacing was to be fitted, and a solver was given."""
    return "\nPilot.fit_spacing has no effect: SOLVER is bound." if pilot.fit_spacing else ""


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
