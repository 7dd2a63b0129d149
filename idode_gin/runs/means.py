"""Means over a split, every image once, with a standard error."""

import collections
import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from idode_gin import checks, types
from idode_gin.feed import batches as batch_lib

LOOK_AHEAD = 2
"""Batches that may be in flight on the device."""


class MaskedMeans:
    """Means over the images of a split, batch by batch, padding left out.

    Sums are in float64, over the images in the order of the split, whatever the batch size.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[np.ndarray]] = {}

    def add(self, values: Mapping[str, Any], num_real: int) -> None:
        """Adds the first `num_real` of per-image values `[B]`; the rest is padding."""
        for name, each in values.items():
            self._values.setdefault(name, []).append(np.asarray(each, np.float64)[:num_real])

    @property
    def images(self) -> int:
        """Images seen so far."""
        return sum(each.size for each in next(iter(self._values.values()), []))

    def means(self) -> dict[str, float]:
        """The mean of everything added, by name."""
        return {name: float(np.mean(self._all(name))) for name in sorted(self._values)}

    def standard_error(self, name: str) -> float | None:
        """Standard error of one mean; None for a single image."""
        return standard_error(self._all(name))

    def _all(self, name: str) -> np.ndarray:
        return np.concatenate(self._values[name])


def standard_error(values: np.ndarray) -> float | None:
    """Standard error of the mean of `[N]`; None for a single value, which has none."""
    if values.size < 2:
        return None
    return float(np.std(values, ddof=1) / np.sqrt(values.size))


class AskedToStop(Exception):
    """Raised between two batches."""


def landed(
    evaluate: Callable[[types.Batch], Mapping[str, jax.Array]],
    batches: Iterator[types.Batch],
    is_asked_to_stop: Callable[[], bool],
) -> Generator[dict[str, np.ndarray], None, None]:
    """The values of batch after batch, on the host; a few more batches are in flight meanwhile.

    Args:
        evaluate: per-image values `[B, ...]` of one batch, the same on every process.
        batches: in the order in which values are wanted.
        is_asked_to_stop: polled before every batch.

    Raises:
        AskedToStop: when it was; what is in flight then is dropped.
    """
    in_flight: collections.deque[Mapping[str, jax.Array]] = collections.deque()
    with contextlib.closing(batch_lib.prefetch(batches)) as ready:
        for batch in ready:
            if is_asked_to_stop():
                raise AskedToStop
            in_flight.append(evaluate(batch))
            if len(in_flight) > LOOK_AHEAD:
                yield jax.device_get(in_flight.popleft())
    while in_flight:
        yield jax.device_get(in_flight.popleft())


def over_batches(
    evaluate: Callable[[types.Batch], Mapping[str, jax.Array]],
    batches: Iterator[types.Batch],
    num_images: int,
    is_asked_to_stop: Callable[[], bool],
) -> MaskedMeans | None:
    """Means over batch after batch; None if asked to stop meanwhile.

    Args:
        evaluate: per-image values `[B]` of one batch, the same on every process.
        batches: of the split in its order, padding at the end of the last.
        num_images: of the split.
        is_asked_to_stop: polled before every batch.
    """
    means = MaskedMeans()
    try:
        for values in landed(evaluate, batches, is_asked_to_stop):
            means.add(values, num_images - means.images)
    except AskedToStop:
        return None
    return means


def row(means: MaskedMeans, step: int) -> dict[str, float]:
    """The means, with `bpd_stderr` where there is one, as `eval/…` of a row of metrics.

    Raises:
        checks.NonFiniteError: if a mean is not finite.
    """
    found = {f"eval/{name}": each for name, each in means.means().items()}
    if not all(math.isfinite(each) for each in found.values()):
        raise checks.NonFiniteError(f"The evaluation at step {step} is not finite: {found}.")
    error = means.standard_error("bpd")
    if error is not None:
        found["eval/bpd_stderr"] = error
    return {**found, "eval/images": means.images}
