"""A small program with every kind of parameter, for the tests of flags, checks and exit codes."""

import dataclasses
import errno
import gc
import os
import sys
from collections.abc import Callable
from typing import Any, Literal

from idode_gin import checks
from idode_gin.reports.paths import LocalPath

if __name__ == "__main__":
    from idode_gin.configs import programs

    sys.exit(programs.run("toy_program", "main", "Toys.\n\n    python -m toy_program --gin_file=F"))

CALLS: list[dict[str, Any]] = []


class AbstractPart:
    """A part of a machine."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wheel(AbstractPart):
    size: int = 1
    grip: float = 0.5
    spokes: tuple[int, ...] = (3, 4)
    name: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine(AbstractPart):
    power: float
    fuel: Literal["coal", "oil"] = "coal"
    governor: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        if self.power <= 0:
            raise ValueError(f"`power` must be positive, got {self.power}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truck(AbstractPart):
    """Calls its engine's governor itself."""

    engine: Engine

    def __post_init__(self) -> None:
        if self.engine.governor is not None:
            self.engine.governor(self.engine.power)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crate:
    """Not a part of a machine."""


def half(value: float) -> float:
    return value / 2


def count() -> int:
    return 3


def limited(value: float, limit: float = 1.0) -> float:
    return min(value, limit)


def main(
    *,
    steps: int,
    folder: LocalPath,
    wheel: AbstractPart,
    engine: AbstractPart,
    spare: AbstractPart | None = None,
    loud: bool = False,
    parts: dict[str, AbstractPart] | None = None,
    fail: Callable[[], None] | None = None,
    dry_run: bool | str = False,
) -> None:
    CALLS.append({"steps": steps, "folder": folder, "wheel": wheel, "engine": engine})
    CALLS[-1] |= {"dry_run": dry_run, "collects_garbage": gc.isenabled()}
    CALLS[-1] |= {"spare": spare, "loud": loud, "parts": parts}
    if isinstance(engine, Engine) and engine.governor is not None:
        CALLS[-1]["governed"] = engine.governor(engine.power)
    if fail is not None:
        fail()


class Stopped(checks.Preempted):
    """An error defined in this module."""


def stop() -> None:
    raise Stopped("saved at step 3")


def diverge() -> None:
    raise checks.NonFiniteError("the loss is NaN at step 3")


def miss() -> None:
    open("no/such/file")  # noqa: SIM115


def fill_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/summary.json")


def break_down() -> None:
    raise ZeroDivisionError("a defect")


def interrupt() -> None:
    raise KeyboardInterrupt
