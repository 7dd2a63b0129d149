"""Choose a solver for a tolerance in bits per dim, and measure its error, on a few images."""

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
"""Step counts tried between a grid and one with twice as many steps, relative to the former."""

_KNOWN = 0.25
"""Required accuracy of the reference, as a share of the tolerance."""
_MORE_STEPS = (
    "Double Pilot.max_steps (in Python, give a `solver` with more steps and tolerance = None)"
)
_ALL, _FITTED, _MEASURED = slice(None), slice(0, None, 2), slice(1, None, 2)
"""Images: a spacing is fitted on every other image and its error measured on the rest."""


class Report(NamedTuple):
    """Result of a pilot for one likelihood; errors in bits per dim."""

    solver: str
    """Description of the solver that was chosen or given."""
    tolerance: float
    """Requested tolerance."""
    error: float
    """Mean over images of |figure - reference|."""
    bias: float
    """Mean over images of figure - reference, the error of the mean."""
    reference_error: float
    """Estimated error of the reference, from its change when the steps were doubled; mean over
    images. Smaller errors cannot be resolved."""
    reference_evaluations: int
    """Network evaluations per image of the reference."""
    num_images: int
    """Number of images averaged over."""
    precision_error: float | None = None
    """Mean over images of |figure - figure in float32 throughout|; None if that is the same."""
    spacing: tuple[float, ...] | None = None
    """Table of the fitted `Tabulated` spacing, if it was chosen."""
    rounding: float = 0.0
    """Rounding error of a figure and of the reference, which more steps do not reduce."""

    @property
    def is_within(self) -> bool:
        """True if the error, including its uncertainty, is within the tolerance."""
        is_known = self.reference_error <= _KNOWN * self.tolerance
        largest = self.error + self.reference_error + self.rounding
        return is_known and largest <= self.tolerance


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pilot:
    """Measures the error of a solver on a few images, and chooses the solver if none is given.

    The same noise and probes are scored with `Adams` grids of 8, 16, 32, … steps, until doubling
    changes the figures by less than a quarter of the tolerance; the last grid is the reference.
    Chosen is the coarsest of these grids, or one between them, whose distance from the reference
    is within the tolerance, including the uncertainty of the reference: the effect of further
    doublings, and rounding. All grids share one compiled program.

    Args:
        tolerance: largest mean error over images, bits per dim.
        num_images: number of images, spread over the split.
        max_steps: bound on the steps of the reference, of which there are 8, 16, 32, …
        precision_tolerance: largest mean change, over images, caused by arithmetic coarser than
            float32 (of the network, or of an accelerator's products), bits per dim; None for
            `tolerance`. See `check_precision`.
        fit_spacing: also try grids with the steps concentrated where errors of the reference arise
            (`likelihood.spacing_fit`), and choose one if it needs fewer steps. The spacing is
            fitted on every other image and its error measured on the rest.

    Raises:
        ValueError: if an argument is not positive, or there are fewer than two images for a fit.
    """

    tolerance: float = 1e-3
    num_images: int = 16
    max_steps: int = 1024
    precision_tolerance: float | None = None
    fit_spacing: bool = False

    def __post_init__(self) -> None:
        if self.precision_tolerance is not None:
            checks.check_positive("precision_tolerance", self.precision_tolerance)
        checks.check_positive("tolerance", self.tolerance)
        checks.check_count("num_images", self.num_images)
        if self.fit_spacing:
            _check_enough_to_fit(self.num_images)
        checks.check_count("max_steps", self.max_steps)
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
        watch: pilot_grids.Watch = pilot_grids.unwatched,
        spread: pilot_grids.Spread = pilot_grids.undivided,
    ) -> tuple[ODELikelihood, Report]:
        """Return the likelihood with a solver, and a report on the error of that solver.

        Args:
            model: the trained model.
            params: parameters of its network.
            batch: `num_images` images with `index` and `conditioning`.
            key: key of the evaluation, so that the noise is that of the first draw to be scored.
            estimator: the likelihood; its solver, if any, is kept.
            watch: makes a context for each grid, from its name.
            spread: divides the images among devices; the default uses one device.

        Raises:
            checks.NonFiniteError: if figures of the given solver, or of the largest number of
                steps, are not finite.
        """
        return self.prepared(model, batch, key, estimator, watch, spread)(params)

    def prepared(
        self,
        model: Model,
        batch: types.Batch,
        key: types.PRNGKey,
        estimator: ODELikelihood,
        watch: pilot_grids.Watch = pilot_grids.unwatched,
        spread: pilot_grids.Spread = pilot_grids.undivided,
    ) -> Callable[[types.Params], tuple[ODELikelihood, Report]]:
        """Return `run` as a function of the parameters, compiled once for all of them."""
        steps = self.max_steps
        grids = Grids(model, batch, key, estimator, steps, watch=watch, spread=spread)
        return lambda params: self._measured(grids, params, estimator)

    def _measured(
        self, score: Grids, params: types.Params, estimator: ODELikelihood
    ) -> tuple[ODELikelihood, Report]:
        steps = _FIRST_STEPS
        found, moves = {steps: score(params, steps)}, [math.inf]
        while moves[-1] > _KNOWN * self.tolerance and 2 * steps <= self.max_steps:
            steps *= 2
            found[steps] = score(params, steps)
            move = _mean_error(found[steps], found[steps // 2])
            moves.append(move if math.isfinite(move) else math.inf)  # NaN would end the loop
        for tried in (steps // 2, steps):
            _check_finite(found[tried], f"{tried} steps of Adams", _MORE_STEPS)
        reference, unknown = found[steps], _still_to_move(*moves[-2:])
        if estimator.solver is None:
            grid, bpd, of = self._chosen(score, params, found, unknown)
            estimator = dataclasses.replace(estimator, solver=grid)
        elif estimator.solver == adams.Adams(steps=steps):
            bpd, of = reference, _ALL
        else:
            bpd, of = score.by_solver(params), _ALL
            _check_finite(bpd, str(estimator.solver), "Raise the number of its steps")
        if bpd is reference:  # a grid would have no error against itself
            reference = found[steps // 2]
        fine = score.in_full_precision(estimator)
        coarseness = None if fine is None else _mean_error(bpd[of], fine.by_solver(params)[of])
        report = Report(
            solver=str(estimator.solver),
            tolerance=self.tolerance,
            error=_mean_error(bpd[of], reference[of]),
            bias=float(np.mean(bpd[of] - reference[of])),
            reference_error=unknown,
            reference_evaluations=steps + 1,
            num_images=len(reference[of]),
            precision_error=coarseness,
            rounding=score.rounding,
            spacing=_table(estimator.solver),
        )
        return estimator, report

    def check_precision(self, model: Model, report: Report) -> None:
        """Check the effect of arithmetic coarser than float32.

        Raises:
            ValueError: if it changes figures by more than `precision_tolerance`.
        """
        allowed = self.tolerance if self.precision_tolerance is None else self.precision_tolerance
        if report.precision_error is None or report.precision_error <= allowed:
            return
        raise ValueError(
            f"Figures of {pilot_grids.coarse_arithmetic(model)} must be within {allowed:.1e} bits "
            "per dim of those in float32 (`Pilot.tolerance`), got a mean distance of "
            f"{report.precision_error:.1e} on {report.num_images} images. Evaluate in float32 "
            "(UNet.dtype = None, the checkpoint is the same; on an accelerator also "
            "JAX_DEFAULT_MATMUL_PRECISION=highest in the environment), or raise "
            "`Pilot.tolerance` or `Pilot.precision_tolerance` (in Python, `tolerance`)."
        )

    def _chosen(
        self, score: Grids, params: types.Params, found: dict[int, np.ndarray], unknown: float
    ) -> tuple[adams.Adams, np.ndarray, slice]:
        """Return the coarsest grid within the tolerance, its figures, and its test images.

        Args:
            score: scores images on a grid.
            params: parameters of the network.
            found: figures by number of equal steps; the last are the reference.
            unknown: estimated error of the reference.
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
                return error + unknown + score.rounding <= self.tolerance

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
    """Return the first grid within the tolerance (the last always is), or a coarser one near it.

    Grids below the preceding one are tried too: a grid whose steps resonate with a period of the
    network is less accurate than coarser grids near it.
    """
    enough = next((steps for steps in doublings[:-1] if is_within(steps)), doublings[-1])
    below = [each for each in doublings if enough // 4 <= each < enough]
    between = [round(each * factor) for each in below for factor in _BETWEEN]
    return next((steps for steps in between if is_within(steps)), enough)


def _check_enough_to_fit(num_images: int) -> None:
    if num_images < 2:
        raise ValueError(
            "`fit_spacing` needs at least two images, to fit on one part and measure the error on "
            f"the other, got {num_images}. Raise `Pilot.num_images`, or set `fit_spacing` to False."
        )


def _still_to_move(before: float, last: float) -> float:
    """Estimate the total change of the reference in further doublings from the last two changes.

    Changes that shrink by r each add up to last * (r + r^2 + …) = last * r / (1 - r). The observed
    r is limited to the values for orders 2 and 1: a change between coarse grids may be small by
    chance, and changes that shrink more slowly are pre-asymptotic or rounding.
    """
    is_known = 0 < before < math.inf
    ratio = min(max(last / before, 0.25), 0.5) if is_known else 0.5
    return last * ratio / (1 - ratio)


def _check_finite(bpd: np.ndarray, solver: str, remedy: str) -> None:
    if count := int(np.sum(~np.isfinite(bpd))):
        raise checks.NonFiniteError(
            f"{count} of the {len(bpd)} images of the pilot have no finite figure by {solver}: the "
            f"ODE needs more steps, or the network diverges. {remedy}, or use an earlier "
            "checkpoint."
        )


def _mean_error(bpd: np.ndarray, reference: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, as it should be
        return float(np.mean(np.abs(bpd - reference)))


def _table(solver: AbstractSolver | None) -> tuple[float, ...] | None:
    if isinstance(solver, adams.Adams) and isinstance(solver.spacing, spacings.Tabulated):
        return solver.spacing.table
    return None
