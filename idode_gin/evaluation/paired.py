"""Differences between two sets of figures of the same images."""

import dataclasses
import math
from typing import final

import numpy as np


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """Second minus first figure of each image; see `difference`.

    Attributes:
        values: by image, `[N]`.
        mean: over images.
        stderr: paired standard error of the mean; None for one image.
        stderr_unpaired: standard error if the two sets were of different images; None for one.
        correlation: of the two figures of an image; None where either does not vary.
        share_lower: share of images whose second figure is lower.
    """

    values: np.ndarray
    mean: float
    stderr: float | None
    stderr_unpaired: float | None
    correlation: float | None
    share_lower: float


def in_order(index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return rows `[N, ...]` of the images `index` in the order 0 … N-1.

    Raises:
        ValueError: unless `index` holds each of 0 … N-1 once.
    """
    if not np.array_equal(np.sort(index), np.arange(len(values))):
        raise ValueError(
            f"`index` must hold each of 0 … {len(values) - 1} once, the images' places in the "
            f"split, got {index.size} values of which {np.unique(index).size} differ."
        )
    return values[np.argsort(index)]


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Return the difference of the means of two sets of figures `[N]` of the same images.

        d_i              = second_i - first_i
        stderr           = s.d. of d / sqrt(N)
        stderr_unpaired  = sqrt((var(first) + var(second)) / N)

    An image that is hard for one model is hard for the other. This part of the spread cancels in
    d, so that the paired error is the smaller one: stderr^2 = stderr_unpaired^2 - 2 cov / N.
    """
    values = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    count = len(values)
    paired = unpaired = correlation = None
    if count > 1:
        paired = float(np.std(values, ddof=1)) / math.sqrt(count)
        spreads = np.std([first, second], axis=1, ddof=1)
        unpaired = float(np.hypot(*spreads)) / math.sqrt(count)
        if spreads.min() > 0:
            correlation = float(np.corrcoef(first, second)[0, 1])
    return Difference(
        values=values,
        mean=float(np.mean(values)),
        stderr=paired,
        stderr_unpaired=unpaired,
        correlation=correlation,
        share_lower=float(np.mean(values < 0)),
    )


def extremes(values: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """Return the images of the `count` lowest and highest values, the most extreme first.

    No image is in both; an image whose value is zero is in neither.
    """
    order = np.argsort(values, kind="stable")
    lowest = [i for i in order[:count].tolist() if values[i] < 0]
    highest = [i for i in order[::-1][:count].tolist() if values[i] > 0]
    return lowest, highest
