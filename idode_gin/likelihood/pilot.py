"""Accuracy as the argument: solver settings for a tolerance in bits per dim, from a few images."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, final

import numpy as np

from idode_gin import checks, types
from idode_gin.likelihood import pilot_grids, spacing_fit
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot_grids import Grids, Model
from idode_gin.solvers import adams, spacings
from idode_gin.solvers.base import AbstractSolver

_FIRST_STEPS = 8
_BETWEEN = (1.25, 1.5, 1.75)
"""Grids tried between one of so many steps and one of twice as many."""


_KNOWN = 0.25
"""Share of the tolerance to which a reference must be known."""
_ALL, _FITTED, _MEASURED = slice(None), slice(0, None, 2), slice(1, None, 2)
"""Images: those that a spacing is fitted on are not those that tell its error."""


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
    """What the reference is off by, estimated from what it moved when its steps were doubled;
    beyond that nothing is known of the errors. Mean over images."""
    reference_evaluations: int
    """Network evaluations per image of the reference."""
    num_images: int
    """That the errors are means over."""
    precision_error: float | None = None
    """Mean over images of |figure - figure in float32 throughout|; None where it is the same."""
    spacing: tuple[float, ...] | None = None
    """The table of the chosen grid's `Tabulated` spacing, where one was fitted and is better."""
    rounding: float = 0.0
    """Of a figure, and so of the reference: what no number of steps takes away."""

    @property
    def is_within(self) -> bool:
        """Whether the error, with all that is unknown of it, is at most what was asked for."""
        is_known = self.reference_error <= _KNOWN * self.tolerance
        largest = _largest(self.error, self.reference_error, self.rounding)
        return is_known and largest <= self.tolerance


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pilot:
    """Measures a solver's error on a few images, and chooses the solver where none is given.

    The same noise and probes are scored on grids of 8, 16, 32, … steps of `Adams`, until doubling
    moves the figures by less than a quarter of the tolerance: that is the reference. The solver
    chosen is the coarsest such grid, or one in between below it, whose distance from it is within
    the tolerance together with what is not known of the reference: what more doublings would move
    it by, and a figure's rounding. All grids share one compiled program.

    Args:
        tolerance: largest mean over images of a figure's error, bits per dim.
        num_images: images that are tried, spread over the split.
        max_steps: of the reference.
        precision_tolerance: largest mean over images of what arithmetic coarser than float32 (the
            network's, or an accelerator's products) moves the figures by, bits per dim; None for
            `tolerance`. See `check_precision`.
        fit_spacing: whether to try grids with steps where the reference says that errors come from
            (`solvers.spacing_fit`), and to choose one of those if it needs fewer steps. It is
            fitted on every other image, and its error measured on the rest.

    Raises:
        ValueError: if an argument is not positive, or there are fewer than two images for a fit.
    """

    tolerance: float = 1e-3
    num_images: int = 16
    max_steps: int = 1024
    precision_tolerance: float | None = None
    fit_spacing: bool = False

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if self.precision_tolerance is not None:
            checks.check_positive("precision_tolerance", self.precision_tolerance)
        checks.check_positive("tolerance", self.tolerance)
        checks.check_positive("num_images", self.num_images)
        if self.fit_spacing:
            _check_enough_to_fit(self.num_images)
        if self.max_steps < 2 * _FIRST_STEPS:
            raise ValueError(
                f"`max_steps` must be at least {2 * _FIRST_STEPS}, two grids to compare, got "
                f"max_steps={self.max_steps}."
            )

    def run(
        self,
        model: Model,
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
        model: Model,
        batch: types.Batch,
        key: types.PRNGKey,
        estimator: ODELikelihood,
    ) -> Callable[[types.Params], tuple[ODELikelihood, Report]]:
        """`run` as a function of the parameters alone, compiled once for however many of them."""
        grids = Grids(model, batch, key, estimator, self.max_steps)
        return lambda params: self._measured(grids, params, estimator)

    def _measured(
        self, score: Grids, params: types.Params, estimator: ODELikelihood
    ) -> tuple[ODELikelihood, Report]:
        steps = _FIRST_STEPS
        found, moves = {steps: score(params, steps)}, [math.inf]
        while moves[-1] > _KNOWN * self.tolerance and 2 * steps <= self.max_steps:
            steps *= 2
            found[steps] = score(params, steps)
            moves.append(_mean_error(found[steps], found[steps // 2]))
        reference, unknown = found[steps], _still_to_move(*moves[-2:])
        if estimator.solver is None:
            grid, bpd, of = self._chosen(score, params, found, unknown)
            estimator = dataclasses.replace(estimator, solver=grid)
        else:
            bpd, of = score.by_solver(params), _ALL
        if bpd is reference:  # what is chosen has no error against itself
            reference = found[steps // 2]
        report = Report(
            solver=str(estimator.solver),
            tolerance=self.tolerance,
            error=_mean_error(bpd[of], reference[of]),
            bias=float(np.mean(bpd[of] - reference[of])),
            reference_error=unknown,
            reference_evaluations=steps + 1,
            num_images=len(reference[of]),
            precision_error=_precision_error(score, params, estimator, bpd, of),
            rounding=score.rounding,
            spacing=_table(estimator.solver),
        )
        return estimator, report

    def check_precision(self, model: Model, report: Report) -> None:
        """Refuses figures of arithmetic that is too coarse for them.

        Raises:
            ValueError: if they are further from those in float32 than `precision_tolerance`.
        """
        allowed = self.tolerance if self.precision_tolerance is None else self.precision_tolerance
        if report.precision_error is None or report.precision_error <= allowed:
            return
        raise ValueError(
            f"Figures of {pilot_grids.coarse_arithmetic(model)} must be within {allowed:.1e} bits "
            "per dim of those in float32 (`Pilot.tolerance`), got a mean distance of "
            f"{report.precision_error:.1e} on {report.num_images} images. Evaluate in float32 "
            "(UNet.dtype = None, the checkpoint is the same; on an accelerator also "
            "JAX_DEFAULT_MATMUL_PRECISION=highest in the environment), raise "
            "`Pilot.tolerance`, or set `Pilot.precision_tolerance`."
        )

    def _chosen(
        self, score: Grids, params: types.Params, found: dict[int, np.ndarray], unknown: float
    ) -> tuple[adams.Adams, np.ndarray, slice]:
        """The coarsest grid within the tolerance, its figures, and the images that tell its error.

        Args:
            score: of grids.
            params: of the network.
            found: figures of equal steps, by their number; the last are the reference.
            unknown: what the reference may be off by.
        """
        doublings = sorted(found)
        reference = found[doublings[-1]]

        def coarsest(
            found: dict[int, np.ndarray], spacing: spacings.AbstractSpacing, of: slice
        ) -> int:
            def is_within(steps: int) -> bool:
                if steps not in found:
                    found[steps] = score(params, steps, spacing)
                error = _mean_error(found[steps][of], reference[of])
                return _largest(error, unknown, score.rounding) <= self.tolerance

            return _coarsest(doublings, is_within)

        equal = spacings.Equal()
        steps = coarsest(found, equal, _ALL)
        if self.fit_spacing:
            _check_enough_to_fit(len(reference))
            defects = score.defects(params, doublings[-1])[:, _FITTED]
            fitted = spacing_fit.fit(defects, pilot_grids.ORDER)
            found_fitted: dict[int, np.ndarray] = {}
            steps_fitted = coarsest(found_fitted, fitted, _MEASURED)
            if steps_fitted < steps:
                grid = adams.Adams(steps=steps_fitted, spacing=fitted)
                return grid, found_fitted[steps_fitted], _MEASURED
        return adams.Adams(steps=steps, spacing=equal), found[steps], _ALL


def _coarsest(doublings: list[int], is_within: Callable[[int], bool]) -> int:
    """The first of the grids that is within the tolerance (the last is), or one below it.

    Below the one before it as well: where equal steps meet a period of the network, a grid is worse
    than coarser ones beside it.
    """
    enough = next((steps for steps in doublings[:-1] if is_within(steps)), doublings[-1])
    below = [each for each in doublings if enough // 4 <= each < enough]
    between = [round(each * factor) for each in below for factor in _BETWEEN]
    return next((steps for steps in between if is_within(steps)), enough)


def _check_enough_to_fit(num_images: int) -> None:
    if num_images < 2:
        raise ValueError(
            "`fit_spacing` needs two images or more, some to fit on and others to measure the "
            f"error on, got {num_images}. Raise `Pilot.num_images`, or set `fit_spacing` to False."
        )


def _precision_error(
    score: Grids, params: types.Params, estimator: ODELikelihood, bpd: np.ndarray, of: slice
) -> float | None:
    fine = score.in_full_precision(estimator)
    return None if fine is None else _mean_error(bpd[of], fine.by_solver(params)[of])


def _largest(error: float, reference_error: float, rounding: float) -> float:
    """What an error may be that was measured against a reference."""
    return error + reference_error + rounding


def _still_to_move(before: float, last: float) -> float:
    """By how much all doublings to come would move a reference that two have moved by this much.

    Moves that shrink by r each add up to last * (r + r^2 + …) = last * r / (1 - r). Here r is what
    is seen, as far as it lies between those of methods of order 2 and 1: a move between coarse
    grids may be small by chance; moves that shrink more slowly are not yet in order, or rounding.
    """
    is_known = 0 < before < math.inf
    ratio = min(max(last / before, 0.25), 0.5) if is_known else 0.5
    return last * ratio / (1 - ratio)


def _mean_error(bpd: np.ndarray, reference: np.ndarray) -> float:
    return float(np.mean(np.abs(bpd - reference)))


def _table(solver: AbstractSolver | None) -> tuple[float, ...] | None:
    if isinstance(solver, adams.Adams) and isinstance(solver.spacing, spacings.Tabulated):
        return solver.spacing.table
    return None
