"""Values of image batches, and their means over a split with a standard error."""

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


class AskedToStop(Exception):
    """Raised between two batches."""


def landed(
    evaluate: Callable[[types.Batch], Mapping[str, jax.Array]],
    batches: Iterator[types.Batch],
    is_asked_to_stop: Callable[[], bool],
) -> Generator[dict[str, np.ndarray], None, None]:
    """Yield the values `[B, ...]` of each batch on the host, while up to `LOOK_AHEAD` are computed.

    Raises:
        AskedToStop: when asked to stop; batches in flight are dropped once they are computed.
    """
    in_flight: collections.deque[Mapping[str, jax.Array]] = collections.deque()
    try:
        with contextlib.closing(batch_lib.prefetch(batches)) as ready:
            for batch in ready:
                if is_asked_to_stop():
                    raise AskedToStop
                in_flight.append(evaluate(batch))
                if len(in_flight) > LOOK_AHEAD:
                    yield jax.device_get(in_flight.popleft())
        while in_flight:
            yield jax.device_get(in_flight.popleft())
    finally:  # a process that ends while XLA computes on a CPU crashes, with another exit code
        with contextlib.suppress(Exception):
            jax.block_until_ready(list(in_flight))


def over_batches(
    evaluate: Callable[[types.Batch], Mapping[str, jax.Array]],
    batches: Iterator[types.Batch],
    num_images: int,
    is_asked_to_stop: Callable[[], bool],
) -> dict[str, np.ndarray] | None:
    """Return values of all images, float64 `[N]` by name; None if asked to stop.

    `batches` hold `num_images` images in all, with padding at the end of the last batch.
    """
    try:
        found = list(landed(evaluate, batches, is_asked_to_stop))
    except AskedToStop:
        return None
    return {
        name: np.concatenate([each[name] for each in found], dtype=np.float64)[:num_images]
        for name in sorted(found[0])
    }


def row(values: Mapping[str, np.ndarray], step: int) -> dict[str, float]:
    """Return means over images, with `bpd_stderr` if known, as `eval/…` of a row of metrics.

    Raises:
        checks.NonFiniteEvaluationError: if a mean is not finite.
    """
    found = {f"eval/{name}": float(np.mean(each)) for name, each in values.items()}
    if not all(math.isfinite(each) for each in found.values()):
        text = f"The evaluation at step {step} is not finite: {found}."
        raise checks.NonFiniteEvaluationError(text)
    if (error := standard_error(values["bpd"])) is not None:
        found["eval/bpd_stderr"] = error
    return {**found, "eval/images": values["bpd"].size}


def summarize(values: np.ndarray) -> dict[str, Any]:
    """Return mean and standard error of values of any shape."""
    values = values.astype(np.float64).ravel()
    return {"mean": float(np.mean(values)), "stderr": standard_error(values)}


def standard_error(values: np.ndarray) -> float | None:
    """Return the standard error of the mean of `[N]`; None for a single value."""
    if values.size < 2:
        return None
    return float(np.std(values, ddof=1) / np.sqrt(values.size))
