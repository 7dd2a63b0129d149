"""Fit the spacing of a grid to the local errors of a grid of equal steps."""

import numpy as np
from jaxtyping import Float

from idode_gin.solvers.spacings import Tabulated

POINTS = 33
"""Entries of a fitted table."""
_DIGITS = 5
_SMALLEST = 0.1
"""Lower bound of the concentration of steps, relative to its mean: other images may be less smooth
there, and adjacent steps should have similar sizes."""


def fit(defects: Float[np.ndarray, "times images"], order: int) -> Tabulated:
    """Return the spacing whose steps contribute equally to the error.

    A step of size h at t has an error C h^{k + 1} D(t), where D is the mean over images of the size
    of the k-th derivative. For a given number of steps the sum is least if all are equal, that is
    if the concentration of steps is proportional to D^{1 / (k + 1)}, here smoothed and bounded
    from below.

    Args:
        defects: D at equally spaced times from start to end, for each image, in any unit.
        order: k, the derivative in D.

    Raises:
        ValueError: if they are not finite.
    """
    if not np.all(np.isfinite(defects)):
        raise ValueError(
            "`defects` must be finite to fit a spacing, got NaN or infinity: the network gave such "
            "values on the reference's grid. Set `Pilot.fit_spacing` to False."
        )
    wanted = np.mean(np.abs(np.asarray(defects, np.float64)), axis=1) ** (1 / (order + 1))
    wanted = _smoothed(wanted)
    if not np.any(wanted > 0):
        wanted = np.ones_like(wanted)  # no error anywhere: equal steps
    wanted = np.maximum(wanted, _SMALLEST * np.mean(wanted))
    between = (wanted[1:] + wanted[:-1]) / 2
    share = np.concatenate([[0.0], np.cumsum(between)]) / np.sum(between)
    times = np.linspace(0.0, 1.0, len(share))
    table = np.interp(np.linspace(0.0, 1.0, POINTS), share, times).round(_DIGITS)
    return Tabulated(table=(0.0, *map(float, table[1:-1]), 1.0))


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Take the maximum of three neighbours, then means of three: zeros of D are isolated."""
    for combine in (np.max, np.mean, np.mean):
        padded = np.pad(values, 1, mode="edge")
        values = combine([padded[:-2], padded[1:-1], padded[2:]], axis=0)
    return values
