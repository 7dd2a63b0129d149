"""Accuracy as the argument: solver settings for a tolerance in bits per dim, from a few images."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from idode_gin import checks, numerics, types
from idode_gin.density import Problem
from idode_gin.likelihood import ODELikelihood
from idode_gin.models import DiffusionODE
from idode_gin.solvers import adams

_FIRST_STEPS = 8
_BETWEEN = (1.25, 1.5, 1.75)
"""Grids tried between one that is too coarse and one of twice its steps that is fine enough."""


_KNOWN = 0.25
"""Share of the tolerance to which a reference must be known."""


class Report(NamedTuple):
    """What a pilot found for one likelihood; errors in bits per dim."""

    solver: str
    """The solver that was chosen or given, in words."""
    tolerance: float
    """That was asked for."""
    error: float
    """Mean over images of |figure - reference|."""
    bias: float
    """Mean over images of figure - reference: the error of the mean."""
    reference_error: float
    """Mean over images of what the reference moved when its steps were doubled last: beyond that
    nothing is known of the errors."""
    reference_evaluations: int
    """Network evaluations per image of the reference."""
    num_images: int
    precision_error: float | None = None
    """Mean over images of |figure - figure with the network in float32|; None where it is."""

    @property
    def is_within(self) -> bool:
        """Whether the error is at most what was asked for, and the reference good enough to say."""
        return self.error <= self.tolerance and self.reference_error <= _KNOWN * self.tolerance


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pilot:
    """Measures a solver's error on a few images, and chooses the solver where none is given.

    The same noise and probes are scored on grids of 8, 16, 32, … steps of `Adams`, until doubling
    moves the figures by less than a quarter of the tolerance: that is the reference. The solver
    chosen is the coarsest such grid, or one in between, that is within the tolerance of it. All
    grids share one compiled program.

    Args:
        tolerance: largest mean over images of a figure's error, bits per dim.
        num_images: images that are tried, spread over the split.
        max_steps: of the reference.
        precision_tolerance: largest mean over images of what a network that computes in less than
            float32 moves the figures by, bits per dim; None for `tolerance`. See `check_precision`.

    Raises:
        ValueError: if an argument is not positive.
    """

    tolerance: float = 1e-3
    num_images: int = 16
    max_steps: int = 1024
    precision_tolerance: float | None = None

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if self.precision_tolerance is not None:
            checks.check_positive("precision_tolerance", self.precision_tolerance)
        checks.check_positive("tolerance", self.tolerance)
        checks.check_positive("num_images", self.num_images)
        if self.max_steps < 2 * _FIRST_STEPS:
            raise ValueError(
                f"`max_steps` must be at least {2 * _FIRST_STEPS}, two grids to compare, got "
                f"max_steps={self.max_steps}."
            )

    def run(
        self,
        model: DiffusionODE,
        params: types.Params,
        batch: types.Batch,
        key: types.PRNGKey,
        estimator: ODELikelihood,
    ) -> tuple[ODELikelihood, Report]:
        """The likelihood with a solver, and what is known of that solver's error.

        Args:
            model: what was trained.
            params: of its network.
            batch: `num_images` images with their `index` and `conditioning`.
            key: of the evaluation: the noise is that of the first draw that will be scored.
            estimator: its solver is kept where it has one.
        """
        return self.prepared(model, batch, key, estimator)(params)

    def prepared(
        self,
        model: DiffusionODE,
        batch: types.Batch,
        key: types.PRNGKey,
        estimator: ODELikelihood,
    ) -> Callable[[types.Params], tuple[ODELikelihood, Report]]:
        """`run` as a function of the parameters alone, compiled once for however many of them."""
        grids = _Grids(model, batch, key, estimator, self.max_steps)
        return lambda params: self._measured(grids, params, estimator)

    def _measured(
        self, score: "_Grids", params: types.Params, estimator: ODELikelihood
    ) -> tuple[ODELikelihood, Report]:
        found: dict[int, np.ndarray] = {}
        steps = _FIRST_STEPS
        while True:
            found[steps] = score(params, steps)
            moved = _mean_error(found[steps], found.get(steps // 2))
            if moved <= _KNOWN * self.tolerance or 2 * steps > self.max_steps:
                break
            steps *= 2
        reference = found[steps]
        if estimator.solver is None:
            chosen = self._coarsest(found, lambda steps: score(params, steps), reference)
            bpd = found[chosen]
            estimator = dataclasses.replace(estimator, solver=adams.Adams(steps=chosen))
        else:
            bpd = score.by_solver(params)
        report = Report(
            solver=str(estimator.solver),
            tolerance=self.tolerance,
            error=_mean_error(bpd, reference),
            bias=float(np.mean(bpd - reference)),
            reference_error=moved,
            reference_evaluations=steps + 1,
            num_images=len(reference),
            precision_error=_precision_error(score, params, estimator, bpd),
        )
        return estimator, report

    def check_precision(self, model: DiffusionODE, report: Report) -> None:
        """Refuses figures of a network whose arithmetic is too coarse for them.

        Raises:
            ValueError: if they are further from those in float32 than `precision_tolerance`.
        """
        allowed = self.tolerance if self.precision_tolerance is None else self.precision_tolerance
        if report.precision_error is None or report.precision_error <= allowed:
            return
        raise ValueError(
            f"The network computes in {model.network.coarse_dtype}, and its figures must be within "
            f"{allowed:.1e} bits per dim of those in float32 (`Pilot.tolerance`), got a mean "
            f"distance of {report.precision_error:.1e} on {report.num_images} images. Evaluate in "
            "float32 (UNet.dtype = None; the checkpoint is the same), ask for less "
            "(BPD_TOLERANCE), or say how much is too much with Pilot.precision_tolerance."
        )

    def _coarsest(
        self,
        found: dict[int, np.ndarray],
        score: Callable[[int], np.ndarray],
        reference: np.ndarray,
    ) -> int:
        """Steps of the coarsest grid within the tolerance; grids that are tried go to `found`."""

        def is_within(steps: int) -> bool:
            if steps not in found:
                found[steps] = score(steps)
            return _mean_error(found[steps], reference) <= self.tolerance

        grids = sorted(found)
        enough = next((steps for steps in grids[:-1] if is_within(steps)), grids[-1])
        between = [round(enough // 2 * factor) for factor in _BETWEEN]
        if enough == grids[0]:
            return enough
        return next((steps for steps in between if is_within(steps)), enough)


class _Grids:
    """Bits per dim of the pilot's images on a grid of any number of steps, compiled once."""

    def __init__(
        self,
        model: DiffusionODE,
        batch: types.Batch,
        key: types.PRNGKey,
        estimator: ODELikelihood,
        max_steps: int,
    ) -> None:
        self._model, self._batch, self._key = model, batch, key
        self._estimator = dataclasses.replace(estimator, num_importance=1, num_repeats=1)
        self._max_steps = max_steps
        self._compiled = jax.jit(self._score)
        self._compiled_by_solver = jax.jit(self._score_by_solver)

    def in_full_precision(self, estimator: ODELikelihood) -> "_Grids | None":
        """The same of the network in float32, None where it computes in that; for `by_solver`."""
        if self._model.network.coarse_dtype is None:
            return None
        network = self._model.network.in_full_precision()
        model = dataclasses.replace(self._model, network=network)
        return _Grids(model, self._batch, self._key, estimator, self._max_steps)

    def __call__(self, params: types.Params, steps: int) -> np.ndarray:
        """`[B]`."""
        problem = self._problem(params, self._batch)[0]
        grid = adams.Adams(steps=steps)
        tables = grid.tables(problem.time_start, problem.time_end, problem.densities)
        blank = self._max_steps - steps
        padded = jax.tree.map(  # by NumPy: XLA would compile it for every grid
            lambda leaf: np.pad(np.asarray(leaf), [(0, blank)] + [(0, 0)] * (leaf.ndim - 1)),
            tables,
        )
        return np.asarray(
            self._compiled(params, self._batch, padded, jnp.asarray(steps)), np.float64
        )

    def by_solver(self, params: types.Params) -> np.ndarray:
        """By the estimator's own solver, `[B]`."""
        return np.asarray(self._compiled_by_solver(params, self._batch), np.float64)

    def _problem(self, params: types.Params, batch: types.Batch) -> tuple[Problem, Any]:
        model, estimator, end = self._model, self._estimator, self._model.end
        problem = Problem.of(
            model.field(params, batch["conditioning"]),
            estimator.dequantizer.gamma_start(end),
            model.time.gamma_max,
            estimator.variable,
            estimator.divergence,
            numerics.num_dims(batch["image"]),
        )
        return problem, end

    def _score_by_solver(self, params: types.Params, batch: types.Batch) -> types.PerExample:
        found = self._model.likelihood_fn(params, batch, self._key, self._estimator)
        return found.bits_per_dim(numerics.num_dims(batch["image"]))

    def _score(
        self, params: types.Params, batch: types.Batch, tables: adams.Tables, steps: Array
    ) -> types.PerExample:
        (problem, end), estimator = self._problem(params, batch), self._estimator
        x = batch["image"]
        keys = numerics.fold_in_each(self._key, batch["index"])
        noise, probes = estimator.draw(0, x.shape[1:], end, keys)
        z = estimator.dequantizer.start(x, noise, end)
        solution = adams.run(
            problem.rate, problem.start(z, probes), tables, steps, problem.args(probes)
        )
        dims = numerics.num_dims(z)
        log_p = problem.density_of(solution).log_p + estimator.dequantizer.entropy(dims, end)
        log_p = log_p + estimator.dequantizer.log_reconstruction(x, z, end)
        return numerics.nats_to_bpd(-log_p, dims)


def _mean_error(bpd: np.ndarray, reference: np.ndarray | None) -> float:
    return float("inf") if reference is None else float(np.mean(np.abs(bpd - reference)))


def _precision_error(
    score: _Grids, params: types.Params, estimator: ODELikelihood, bpd: np.ndarray
) -> float | None:
    fine = score.in_full_precision(estimator)
    return None if fine is None else _mean_error(bpd, fine.by_solver(params))
