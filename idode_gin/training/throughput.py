"""How fast a run is, what share of its devices it uses, and where its time goes."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax

from idode_gin import checks
from idode_gin.reports.metrics import TIME_PREFIX, Row

T = TypeVar("T")
PeakTable = Mapping[str, Mapping[str, float]]

PEAK_FLOPS: PeakTable = {
    "NVIDIA A100": {"bfloat16": 312e12, "float16": 312e12, "float32": 156e12},
    "NVIDIA H100": {"bfloat16": 989e12, "float16": 989e12, "float32": 494e12},
    "NVIDIA H100 PCIe": {"bfloat16": 756e12, "float16": 756e12, "float32": 378e12},
    "NVIDIA H100 NVL": {"bfloat16": 835e12, "float16": 835e12, "float32": 417e12},
    "NVIDIA H200": {"bfloat16": 989e12, "float16": 989e12, "float32": 494e12},
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5e": {"bfloat16": 197e12},
    "TPU v5": {"bfloat16": 459e12},
    "TPU v5p": {"bfloat16": 459e12},
    "TPU v6 lite": {"bfloat16": 918e12},
    "TPU v6e": {"bfloat16": 918e12},
}
"""Operations a second of one device, by the beginning of its kind and the dtype of the arithmetic:
the makers' figures for dense matrices. float32 on NVIDIA is TF32, which XLA uses by default."""

PHASES = ("start", "data", "train", "eval", "checkpoint")
"""`start` is everything up to the end of the first step, compilation included; `data` is waiting
for a batch, `train` the steps, as far as the loop waits for them."""


def check_peak_flops(table: PeakTable | None) -> None:
    """Raises ValueError unless the table holds positive numbers."""
    for kind, row in (table or {}).items():
        for dtype, peak in row.items():
            checks.check_positive(f"peak_flops[{kind!r}][{dtype!r}]", peak)


def peak_flops(kind: str, dtype: str, table: PeakTable | None = None) -> float | None:
    """Operations a second that one device can do at most; None where nobody has told.

    Args:
        kind: `device_kind` of the device.
        dtype: of the arithmetic.
        table: like `PEAK_FLOPS`, which it is added to. The longest fitting beginning counts.
    """
    known = {**PEAK_FLOPS, **(table or {})}
    fitting = [name for name in known if kind.startswith(name)]
    return known[max(fitting, key=len)].get(dtype) if fitting else None


def timed(values: Mapping[str, Any]) -> Row:
    """The values as fields of a row that may differ between two runs of one command."""
    return {f"{TIME_PREFIX}{name}": each for name, each in values.items()}


def peak_bytes() -> Row:
    """The most memory that was in use: of this process's fullest device, else of the process."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    found = [each["peak_bytes_in_use"] for each in stats if each and "peak_bytes_in_use" in each]
    if found:
        return {"peak_device_bytes": max(found)}
    unit = 1 if sys.platform == "darwin" else 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_host_bytes": used}


class Meter:
    """Turns seconds per step into figures that can be compared between machines.

    Args:
        batch_size: images of one step.
        devices: how many take part.
        flops: operations of one step on all of them.
        peak: operations a second that one device can do; None leaves the share out.
    """

    def __init__(self, batch_size: int, devices: int, flops: float, peak: float | None) -> None:
        self._batch_size, self._devices = batch_size, devices
        self.flops, self._peak = flops, peak

    def rates(self, step_seconds: float | None) -> Row:
        """Fields of a row; none without a time."""
        if not step_seconds:
            return {}
        steps = 1 / step_seconds
        row = {
            "steps_per_second": steps,
            "images_per_second_per_device": steps * self._batch_size / self._devices,
            "flops_per_second": steps * self.flops,
        }
        share = self.share(steps * self._batch_size)
        if share is not None:
            row["flops_share"] = share
        return timed(row)

    def share(self, images_per_second: float | None) -> float | None:
        """Of the devices' peak, the fraction that training uses; None where it is not known."""
        if self._peak is None or not images_per_second:
            return None
        steps = images_per_second / self._batch_size
        return steps * self.flops / (self._peak * self._devices)


class Clock:
    """Where a process's time goes. Every second belongs to one of `PHASES`.

    Args:
        began: when the process did, by `time.monotonic`.
        rows: of the processes before this one, whose time counts in `goodput`.
        dropped: rows that those had written, and this one will write again: their time is `lost`.
    """

    def __init__(self, began: float, rows: Iterable[Row] = (), dropped: Iterable[Row] = ()) -> None:
        self._phase, self._since = PHASES[0], began
        self._lap = dict.fromkeys(PHASES, 0.0)
        self._lost = sum(sum(_seconds(row).values()) for row in dropped)
        self._totals = dict.fromkeys((*PHASES, "lost"), 0.0)
        for row in rows:
            self._add(_seconds(row))

    def enter(self, phase: str) -> str:
        """From now on, time belongs to `phase`; returns the one before it."""
        now, before = time.monotonic(), self._phase
        self._lap[before] += now - self._since
        self._phase, self._since = phase, now
        return before

    @contextlib.contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        """Time inside belongs to `phase`, after it to the one before."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def waiting_for(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; the time each takes to come belongs to `data`."""
        iterator = iter(items)
        while True:
            with self.inside("data"):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def lap(self) -> Row:
        """Seconds by phase since the last lap, and `goodput` up to here."""
        self.enter(self._phase)
        lap = {**self._lap, "lost": self._lost} if self._lost else dict(self._lap)
        self._lap, self._lost = dict.fromkeys(PHASES, 0.0), 0.0
        self._add(lap)
        row = {f"{phase}_seconds": each for phase, each in lap.items()}
        return timed({**row, "goodput": self.goodput})

    @property
    def seconds(self) -> dict[str, float]:
        """Of all laps, those of earlier processes included, by phase."""
        return dict(self._totals)

    @property
    def goodput(self) -> float | None:
        """The share of `train` in all laps; None before the first.

        What a killed process did after its last row is in no file, and so in neither.
        """
        total = sum(self._totals.values())
        return self._totals["train"] / total if total else None

    def _add(self, lap: Mapping[str, float]) -> None:
        for phase, each in lap.items():
            self._totals[phase] += each


def _seconds(row: Mapping[str, Any]) -> dict[str, float]:
    names = {phase: f"{TIME_PREFIX}{phase}_seconds" for phase in (*PHASES, "lost")}
    return {phase: float(row[name]) for phase, name in names.items() if name in row}
