"""What evaluation and sampling share: values of every image, each computed once, however often the
process is stopped.
"""

import contextlib
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import jax
import numpy as np

from idode_gin import checks, numerics, types
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.processes import joining, preemption
from idode_gin.reports import progress
from idode_gin.runs import means
from idode_gin.runs.partial_results import PartialResults, Rows

Compute = Callable[[types.Params, types.Batch], Mapping[str, jax.Array]]
"""`(params, batch) -> values [B, ...]` by name."""


def compiled(compute: Compute, partitioner: PjitPartitioner, solve_size: int) -> Compute:
    """`compute` on every device's own images, `solve_size` at a time; its values are everywhere."""

    def computed(params: types.Params, batch: types.Batch) -> Mapping[str, jax.Array]:
        return numerics.map_chunks(lambda part: compute(params, part), batch, solve_size)

    per_device = partitioner.per_device(computed)
    return joining.together(jax.jit(per_device, out_shardings=partitioner.replicated))


class ImageLoop:
    """Computes values of N images in one section or several, from wherever `folder` says they are.

    A context: SIGTERM and SIGINT are polled in it, and what was computed is kept, however it is
    left. Once results are written elsewhere, `remove` what was kept.

    Args:
        folder: for what is kept; see `PartialResults`.
        facts: what the values are a function of, beside the image's number.
        num_images: N.

    Raises:
        ValueError: if `folder` holds values of another computation.
    """

    def __init__(self, folder: pathlib.Path, facts: Mapping[str, Any], num_images: int) -> None:
        self._kept = PartialResults(folder, facts, num_images, _place())
        self._stop = preemption.StopRequest(preemption.RESULTS, self._last_words)
        self._polls = itertools.count()

    @property
    def seconds_before(self) -> float:
        """That the processes before this one took for what is kept."""
        return self._kept.seconds_before

    def __enter__(self) -> "ImageLoop":
        if self._kept.is_begun and jax.process_index() == 0:
            print(f"Going on from {self._kept.progress()}.", flush=True)
        self._stop.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._kept.write()
        finally:
            self._stop.__exit__(kind, error, trace)

    def run(
        self,
        section: str,
        compute: Callable[[types.Batch], Mapping[str, jax.Array]],
        batches: Callable[[np.ndarray], Iterator[types.Batch]],
        batch_size: int,
    ) -> Rows:
        """Values `[N, ...]` of all images, of which those that were kept are not computed again.

        Args:
            section: what the values are called.
            compute: values `[B, ...]` of a batch, the same on every process.
            batches: of the images of the given numbers, in that order, padded at the end.
            batch_size: B.

        Raises:
            checks.Preempted: when asked to stop; what was computed is kept.
        """
        missing = self._kept.missing(section)
        count, done = self._kept.num_images, self._kept.num_images - len(missing)
        starts = range(0, len(missing), batch_size)
        landed = means.landed(compute, batches(missing), self._is_asked_to_stop)
        try:
            with progress.image_bar(section, count, done) as bar, contextlib.closing(landed):
                for start, values in zip(starts, landed, strict=True):
                    index = missing[start : start + batch_size]
                    rows = {name: each[: len(index)] for name, each in values.items()}
                    self._kept.add(section, index, rows)
                    bar.update(len(index))
        except means.AskedToStop:
            raise checks.Preempted(self._last_words(self._stop.reason)) from None
        return self._kept.rows(section)

    def remove(self) -> None:
        """Removes what was kept."""
        self._kept.remove()

    def _is_asked_to_stop(self) -> bool:
        return self._stop.stop_at(next(self._polls))

    def _last_words(self, reason: str) -> str:
        self._kept.write()
        return (
            f"Stopped by {reason} after {self._kept.progress()}. The same command goes on from "
            "there."
        )


def _place() -> str:
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}"
