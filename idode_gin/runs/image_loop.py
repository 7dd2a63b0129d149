"""The loop over images of evaluation and generation: resumable, each image computed once."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from idode_gin import checks, numerics, types
from idode_gin.devices import backends
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import batches as batch_lib
from idode_gin.feed import data
from idode_gin.processes import joining, preemption
from idode_gin.reports import paths, progress
from idode_gin.runs import means
from idode_gin.runs.partial_results import PartialResults, Rows

Compute = Callable[[types.Params, types.Batch], Mapping[str, jax.Array]]
"""`(params, batch) -> values [B, ...]` by name, the same on every process."""
Batches = Callable[[np.ndarray, np.ndarray], Iterator[types.Batch]]
"""`(index, rows) -> batches` of the images `index`, in that order; of each batch, the places
`rows`, with padding at the end of the last one. See `batches.index_batches`."""
FOLDER = "partial_results"
"""Subfolder of the output directory that holds values until the results are written."""


def compiled(compute: Compute, partitioner: PjitPartitioner, solve_size: int) -> Compute:
    """Compile `compute`: each device computes its own images, `solve_size` at a time.

    The values returned are replicated over all devices.
    """

    def computed(params: types.Params, batch: types.Batch) -> Mapping[str, jax.Array]:
        return numerics.map_chunks(lambda part: compute(params, part), batch, solve_size)

    per_device = partitioner.per_device(computed)
    jitted = joining.together(jax.jit(per_device, out_shardings=partitioner.replicated))
    return progress.first_call(jitted, "compiling")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageLoop:
    """Computes values of N images, in one section or several; `kept` so far. Made by `opened`.

    `verb` and `unit` say in reports what is computed, and of what.
    """

    kept: PartialResults
    is_asked_to_stop: Callable[[], bool]
    partitioner: PjitPartitioner
    batch_size: int
    verb: str
    unit: str

    def run(
        self,
        section: str,
        compute: Compute,
        params: types.Params,
        batches: Batches,
        images: np.ndarray | None = None,
    ) -> Rows:
        """Return the values `[N, ...]` of all images; computes those that are not kept yet.

        With `images`, rising integers `[n]`, those of these alone.

        Raises:
            means.AskedToStop: when asked to stop.
        """
        missing, size = self.kept.missing(section, images), self.batch_size
        made = batches(missing, self.partitioner.local_rows(size))
        landed = means.landed(
            lambda batch: compute(params, batch),
            (self.partitioner.put_batch(batch, size) for batch in made),
            self.is_asked_to_stop,
        )
        count = self.kept.num_images if images is None else len(images)
        self.kept.expected[section] = count
        what, done = f"{self.verb} {section}", count - len(missing)
        phase = progress.phase(what, count, done=done, unit=self.unit)
        with phase as going_on, contextlib.closing(landed):
            for start, values in zip(range(0, len(missing), size), landed, strict=True):
                index = missing[start : start + size]
                rows = {name: each[: len(index)] for name, each in values.items()}
                self.kept.add(section, index, rows)
                going_on.advance(len(index))
        return self.kept.rows(section, images)

    def batches_of(self, split: data.ImageSplit, images: np.ndarray | None = None) -> Batches:
        """Return a function that gives batches of a split, or of its `images`, integers `[N]`."""
        return lambda index, rows: batch_lib.eval_batches(
            split, self.batch_size, rows, index if images is None else images[index]
        )

    def cost_since(self, began: float) -> dict[str, Any]:
        """Return the devices, and seconds since `time.monotonic()` was `began`, for a summary.

        The seconds include those of interrupted runs; the devices are those of the last one.
        """
        seconds = self.kept.seconds_before + time.monotonic() - began
        return {"devices": backends.facts(), "wall_seconds": seconds}


@contextlib.contextmanager
def opened(
    output_dir: str | pathlib.Path,
    facts: Mapping[str, Any],
    num_images: int,
    partitioner: PjitPartitioner,
    batch_size: int,
    verb: str = "scoring",
    unit: str = "images",
) -> Iterator[ImageLoop]:
    """A context that resumes from `FOLDER` in `output_dir`, and stops when a signal asks for it.

    However the context is left, the values computed so far are kept; unless some are not finite,
    because running again would give the same ones. Call `kept.remove()` once results are written.
    `facts` holds everything that the values depend on, beside the number of the image.

    Raises:
        ValueError: if the folder holds values that depend on other facts.
        checks.Preempted: when asked to stop.
    """
    kept = PartialResults(paths.of(output_dir) / FOLDER, facts, num_images, _hardware())
    if kept.is_begun and jax.process_index() == 0:
        print(f"Resuming from {kept.progress(unit)}.", flush=True)
    loop = ImageLoop(
        kept=kept,
        is_asked_to_stop=lambda: False,
        partitioner=partitioner,
        batch_size=batch_size,
        verb=verb,
        unit=unit,
    )
    with reopened(loop) as stoppable:
        yield stoppable


@contextlib.contextmanager
def reopened(loop: ImageLoop) -> Iterator[ImageLoop]:
    """The same context as `opened`, for a loop that was left, with the values it has kept."""
    kept = loop.kept

    def interrupted(reason: str) -> str:
        kept.write()
        done = kept.progress(loop.unit)
        return f"Stopped by {reason} after {done}. Run the same command to resume."

    with preemption.StopRequest(preemption.RESULTS, interrupted) as stop:
        try:
            yield dataclasses.replace(loop, is_asked_to_stop=lambda: stop.requested)
        except means.AskedToStop:
            raise checks.Preempted(interrupted(stop.reason)) from None
        except checks.NonFiniteError:
            kept.remove()
            joining.wait_for_all("removed")  # the first of them to fail ends process 0
            raise
        finally:
            kept.write()


def check_solved(success: np.ndarray, what: str) -> None:
    """Raise NonFiniteError, which names `what` was solved, unless every solve succeeded."""
    failed = int((~success).sum())
    if failed:
        raise checks.NonFiniteError(
            f"{failed} of {len(success)} {what} have no result: the network gave NaN or infinity, "
            "or an adaptive solver reached its `max_steps`. Use an earlier checkpoint, or raise "
            "`max_steps` or the tolerances."
        )


def _hardware() -> str:
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}"
