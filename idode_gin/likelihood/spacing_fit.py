"""Where the steps of a grid should lie, from where the error of an equal one comes from."""

import numpy as np
from jaxtyping import Float

from idode_gin.solvers.spacings import Tabulated

POINTS = 33
"""Entries of a fitted table."""
_DIGITS = 5
_SMALLEST = 0.1
"""Of the mean density of steps: what was smooth for the images that were tried may not be for all,
and neighbouring steps should not differ by much."""


def fit(defects: Float[np.ndarray, "times images"], order: int) -> Tabulated:
    """The spacing whose steps have equal parts in the error.

    A step of size h at t makes an error C h^{k + 1} D(t), D being the mean over images of the size
    of the k-th derivative. The sum over a given number of steps is least where all are equal: the
    steps lie as densely as D^{1 / (k + 1)}, which is smoothed and bounded from below.

    Args:
        defects: D at times that are equally spaced from start to end, of each image, in any unit.
        order: k, the derivative in D.

    Raises:
        ValueError: if they are not finite.
    """
    if not np.all(np.isfinite(defects)):
        raise ValueError(
            "`defects` must be finite to fit a spacing, got some that are not: the network gave "
            "NaN or infinity on the reference's grid. Score with Pilot.fit_spacing = False."
        )
    density = np.mean(np.abs(np.asarray(defects, np.float64)), axis=1) ** (1 / (order + 1))
    density = _smoothed(density)
    if not np.any(density > 0):
        density = np.ones_like(density)  # nothing to tell the times apart
    density = np.maximum(density, _SMALLEST * np.mean(density))
    between = (density[1:] + density[:-1]) / 2
    share = np.concatenate([[0.0], np.cumsum(between)]) / np.sum(between)
    times = np.linspace(0.0, 1.0, len(share))
    table = np.interp(np.linspace(0.0, 1.0, POINTS), share, times).round(_DIGITS)
    return Tabulated(table=(0.0, *map(float, table[1:-1]), 1.0))


def _smoothed(values: np.ndarray) -> np.ndarray:
    """The largest of three neighbours, then means of three: a zero of D is no place for a leap."""
    for combine in (np.max, np.mean, np.mean):
        padded = np.pad(values, 1, mode="edge")
        values = combine([padded[:-2], padded[1:-1], padded[2:]], axis=0)
    return values
