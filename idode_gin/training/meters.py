"""Meters of a run while it trains: clock, speed, progress bar and profiler."""

import time
from typing import Any

import jax

from idode_gin.devices import backends, flops, partitioning
from idode_gin.reports import metrics, progress
from idode_gin.runs import run_inputs
from idode_gin.training import profiling, throughput
from idode_gin.training.setup import Setup, Start


class Meters:
    """The meters of a run, as one context.

    `began` is when this process began, by `time.monotonic`; `log` holds rows of earlier processes.
    """

    def __init__(
        self,
        setup: Setup,
        start: Start,
        log: metrics.MetricsLog,
        began: float,
        peak_flops: throughput.PeakTable | None,
        window: profiling.ProfileWindow | None,
    ) -> None:
        self._setup, self._began = setup, began
        dtype = getattr(setup.model.network, "dtype", None) or "float32"
        kind = jax.devices()[0].device_kind
        self._peak = throughput.peak_flops(kind, dtype, peak_flops)
        self._marks: list[tuple[int, float]] = []
        with progress.phase("tracing the update"):
            self.flops = _count_flops(setup)
        self.clock = throughput.Clock(began, log.rows, log.dropped)
        self.bar = progress.Progress(
            start.step,
            setup.train_steps,
            setup.train.config.batch_size,
            enabled=jax.process_index() == 0,
            seconds=self.clock.training,
        )
        folder = setup.directory / "train" / "profile"
        self.profiler = profiling.Profiler(window, folder, self.bar.say)
        self.log = log

    def __enter__(self) -> "Meters":
        self.bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.profiler.close()
        self.bar.__exit__(None, None, None)

    def after_step(self, step: int, outputs: Any) -> None:
        """Measure speed from here on if this was the process's first step, which compiles."""
        self.profiler.after(step, outputs)
        if not self._marks:
            jax.block_until_ready(outputs)
            self.clock.enter("train")
            self._marks = 2 * [(step, self.clock.training())]

    def lap(self, step: int) -> metrics.Row:
        """Return speed, phases and memory since the last lap; `step` must have been computed."""
        row: metrics.Row = {}
        if self._marks:
            row = self._rates(self._marks[1], mark := (step, self.clock.training()))
            self._marks[1] = mark
        row |= self.clock.lap() | throughput.timed(throughput.peak_bytes())
        return row | {"time/wall_seconds": time.monotonic() - self._began}

    def summary(self) -> dict[str, Any]:
        """Return the fields of summary.json that differ between two runs of one command."""
        self.clock.lap()
        rates = self._rates(*self._marks) if self._marks else {}
        if not rates:  # nothing was trained: those of the last process that did
            timed = (row for row in reversed(self.log.rows) if "time/images_per_second" in row)
            rates = next(timed, {})
        return {
            "images_per_second": rates.get("time/images_per_second"),
            "flops_per_step": self.flops,
            "flops_share": rates.get("time/flops_share"),
            "seconds": self.clock.seconds,
            "goodput": self.clock.goodput,
            **throughput.peak_bytes(),
            "devices": backends.facts(),
            "wall_seconds": time.monotonic() - self._began,
        }

    def _rates(self, mark: tuple[int, float], other: tuple[int, float]) -> metrics.Row:
        """Return speed between two marks, each a step and seconds of training up to it."""
        steps, seconds = other[0] - mark[0], other[1] - mark[1]
        if not steps:
            return {}
        images = self._setup.train
        size, devices = images.config.batch_size, images.partitioner.mesh.size
        return throughput.rates(seconds / steps, size, devices, self.flops, self._peak)


def _count_flops(setup: Setup) -> float:
    """Return operations of one step; with the shardings of training, so it is traced only once."""
    images, program = setup.train, setup.program
    size = images.config.batch_size
    batch = run_inputs.blank_batch(setup.model, images.split.image_shape, size)
    sharding = dict.fromkeys(batch, images.partitioner.batch_sharding)
    placed = partitioning.abstract(batch, sharding)
    return flops.count(program.step, program.abstract_state, placed)
