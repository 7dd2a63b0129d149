"""Speed of a run, its share of the devices' peak, and its time by phase."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from idode_gin import checks
from idode_gin.reports.metrics import TIME_PREFIX, Row

PeakTable = Mapping[str, Mapping[str, float]]

PEAK_FLOPS: PeakTable = {
    "NVIDIA A100": {"bfloat16": 312e12, "float16": 312e12, "float32": 156e12},
    "NVIDIA H100": {"bfloat16": 989e12, "float16": 989e12, "float32": 494e12},
    "NVIDIA H100 PCIe": {"bfloat16": 756e12, "float16": 756e12, "float32": 378e12},
    "NVIDIA H100 NVL": {"bfloat16": 835e12, "float16": 835e12, "float32": 417e12},
    "NVIDIA H200": {"bfloat16": 989e12, "float16": 989e12, "float32": 494e12},
    "NVIDIA H200 NVL": {"bfloat16": 835e12, "float16": 835e12, "float32": 417e12},
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5e": {"bfloat16": 197e12},
    "TPU v5": {"bfloat16": 459e12},
    "TPU v5p": {"bfloat16": 459e12},
    "TPU v6 lite": {"bfloat16": 918e12},
    "TPU v6e": {"bfloat16": 918e12},
}
"""Peak operations per second of one device, by the beginning of its `device_kind` and the dtype of
the arithmetic: the vendors' figures for dense matrices. float32 on NVIDIA is TF32, the default of
XLA."""

PHASES = ("start", "data", "train", "eval", "checkpoint")
"""`start` lasts to the end of the first step, compilation included; `data` is waiting for a batch;
`train` is the steps, as far as the loop waits for them."""
_TRAINING = ("data", "train", "checkpoint")  # speed is measured over these
_LOST = "lost"


def check_peak_flops(table: PeakTable | None) -> None:
    """Raise ValueError unless the table holds positive numbers."""
    for kind, row in (table or {}).items():
        for dtype, peak in row.items():
            checks.check_positive(f"peak_flops[{kind!r}][{dtype!r}]", peak)


def peak_flops(kind: str, dtype: str, table: PeakTable | None = None) -> float | None:
    """Return the peak operations per second of one device; None where it is not known.

    `table` holds entries added to `PEAK_FLOPS`. The longest name that `kind` begins with is used.
    """
    own = (table or {}).items()
    known = {**PEAK_FLOPS, **{name: {**PEAK_FLOPS.get(name, {}), **row} for name, row in own}}
    fitting = [name for name in known if kind.startswith(name)]
    return known[max(fitting, key=len)].get(dtype) if fitting else None


def timed(values: Mapping[str, Any]) -> Row:
    """Return the values as fields of a row that may differ between two runs of one command."""
    return {f"{TIME_PREFIX}{name}": each for name, each in values.items()}


def peak_bytes() -> Row:
    """Return the peak memory of this process's fullest device, else of the process."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    found = [each["peak_bytes_in_use"] for each in stats if each and "peak_bytes_in_use" in each]
    if found:
        return {"peak_device_bytes": max(found)}
    unit = 1 if sys.platform == "darwin" else 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_host_bytes": used}


def rates(
    step_seconds: float, batch_size: int, devices: int, flops: float, peak: float | None
) -> Row:
    """Return fields of a row that compare the speed of runs and machines.

    `flops` counts operations of one step on all devices, `peak` those per second of one device;
    None leaves `flops_share` out.
    """
    row = {
        "images_per_second": batch_size / step_seconds,
        "step_seconds": step_seconds,
        "steps_per_second": 1 / step_seconds,
        "images_per_second_per_device": batch_size / step_seconds / devices,
        "flops_per_second": flops / step_seconds,
    }
    if peak is not None:
        row["flops_share"] = flops / step_seconds / (peak * devices)
    return timed(row)


class Clock:
    """Time of a process by phase: every second belongs to one of `PHASES`.

    Args:
        began: when the process began, by `time.monotonic`.
        rows: rows of earlier processes of the run, whose time counts in `goodput`.
        dropped: rows of earlier processes whose steps are repeated: their time is `lost`.
    """

    def __init__(self, began: float, rows: Iterable[Row] = (), dropped: Iterable[Row] = ()) -> None:
        self._phase, self._since = PHASES[0], began
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._at_lap = dict(self._spent)
        self._totals = dict.fromkeys((*PHASES, _LOST), 0.0)
        for row in rows:
            self._add(_seconds(row))
        self._lost = sum(sum(_seconds(row).values()) for row in dropped)

    def enter(self, phase: str) -> str:
        """Count time to `phase` from now on; return the phase before it."""
        now, before = time.monotonic(), self._phase
        self._spent[before] += now - self._since
        self._phase, self._since = phase, now
        return before

    @contextlib.contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        """Count time inside the context to `phase`, and after it to the phase before."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def lap(self) -> Row:
        """Return seconds by phase since the last lap, and `goodput` up to now."""
        self.enter(self._phase)
        lap = {phase: self._spent[phase] - self._at_lap[phase] for phase in PHASES}
        if self._lost:
            lap[_LOST] = self._lost
        self._at_lap, self._lost = dict(self._spent), 0.0
        self._add(lap)
        row = {f"{phase}_seconds": each for phase, each in lap.items()}
        return timed({**row, "goodput": self.goodput})

    def training(self) -> float:
        """Return this process's seconds so far without `start` and `eval`."""
        self.enter(self._phase)
        return sum(self._spent[phase] for phase in _TRAINING)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase of all laps, those of earlier processes included."""
        return dict(self._totals)

    @property
    def goodput(self) -> float | None:
        """Share of `train` in all laps; None before the first.

        No file records what a killed process did after its last row, so that time is left out.
        """
        total = sum(self._totals.values())
        return self._totals["train"] / total if total else None

    def _add(self, lap: Mapping[str, float]) -> None:
        for phase, each in lap.items():
            self._totals[phase] += each


def _seconds(row: Mapping[str, Any]) -> dict[str, float]:
    names = {phase: f"{TIME_PREFIX}{phase}_seconds" for phase in (*PHASES, _LOST)}
    return {phase: float(row[name]) for phase, name in names.items() if name in row}
