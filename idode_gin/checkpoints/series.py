"""Iterate over the checkpoints of a run directory: all present, or future ones as well."""

import abc
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, final

import jax

from idode_gin import checks
from idode_gin.checkpoints import files, names
from idode_gin.processes import exchange, preemption
from idode_gin.reports import paths, progress

IsDone = Callable[[pathlib.Path], bool]
"""Returns True if the checkpoint at a path needs no more work."""
NOTICE = "no longer waiting for checkpoints. Signal again to stop at once."
_TICK = 0.25  # seconds between two checks for a request to stop
_NONE = -1


class AbstractSeries(abc.ABC):
    """An iteration over checkpoints of one run directory."""

    words: ClassVar[str]
    """Description of the checkpoints, to be followed by the name of the newest."""

    @abc.abstractmethod
    def check(self, directory: str) -> None:
        """Raise ValueError if `directory` cannot hold the series."""

    @abc.abstractmethod
    def each(self, directory: str, is_done: IsDone) -> Iterator[pathlib.Path]:
        """Yield every checkpoint for which `is_done` is false, oldest first, complete when yielded.

        A checkpoint that is deleted before its turn is reported and left out. One that is still
        not done after it was yielded is yielded again when its files have changed. Every process
        gets the same checkpoints.

        Raises:
            checks.Preempted: when asked to stop while waiting.
        """


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class All(AbstractSeries):
    """All checkpoints of a run directory, including those saved during the iteration."""

    words: ClassVar[str] = "every checkpoint up to"

    def check(self, directory: str) -> None:
        """Raise ValueError if `directory` is not a run directory with checkpoints."""
        files.find(directory, "latest")

    def each(self, directory: str, is_done: IsDone) -> Iterator[pathlib.Path]:
        """See `AbstractSeries`."""
        backlog = _Backlog(directory, is_done)
        while (found := backlog.next()) is not None:
            yield found


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch(AbstractSeries):
    """All checkpoints of a run directory and every future one. The directory need not exist yet.

    Args:
        period: seconds between two looks at the directory.
        timeout: seconds without a new checkpoint after which the iteration ends; None never ends.
    """

    words: ClassVar[str] = "every future checkpoint, and all up to"
    period: float = 30.0
    timeout: float | None = 3600.0

    def __post_init__(self) -> None:
        """Check the times."""
        checks.check_positive("period", self.period)
        if self.timeout is not None and not self.timeout >= 0:
            raise ValueError(f"`timeout` must be zero or more, got timeout={self.timeout}.")

    def check(self, directory: str) -> None:
        """Raise ValueError for a single checkpoint or a file; the directory need not exist yet."""
        name = paths.of(directory).name
        is_single = names.is_checkpoint(name) or names.is_misnamed(name)
        if directory == "" or is_single or _local(directory).is_file():
            files.find(directory, "latest")

    def each(self, directory: str, is_done: IsDone) -> Iterator[pathlib.Path]:
        """See `AbstractSeries`."""
        backlog, idle = _Backlog(directory, is_done), 0.0
        while True:
            found = backlog.next()
            if found is not None:
                yield found
                idle = 0.0
            elif self.timeout is not None and idle >= self.timeout:
                return
            else:
                if idle == 0.0:
                    self._announce(directory)
                left = self.period if self.timeout is None else self.timeout - idle
                pause = min(self.period, left)
                with progress.phase(f"waiting for another checkpoint in {directory}"):
                    _wait(pause, directory)
                idle += pause

    def _announce(self, directory: str) -> None:
        if jax.process_index() == 0:
            end = "" if self.timeout is None else f", for up to {self.timeout:g} seconds"
            print(
                f"Waiting for another checkpoint in {directory}: checking every {self.period:g} "
                f"seconds{end}.",
                flush=True,
            )


class _Backlog:
    """Checkpoints of a directory that are not yet yielded."""

    def __init__(self, directory: str, is_done: IsDone) -> None:
        self._directory = _local(directory).absolute()
        self._is_done = is_done
        self._done: set[int] = set()
        self._todo: set[int] = set()
        self._given: dict[int, tuple[int, Any]] = {}

    def next(self) -> pathlib.Path | None:
        """Return the oldest, None if there is none. Process 0 looks and broadcasts the answer."""
        step = int(exchange.from_first(lambda: str(self._oldest()).encode()))
        return None if step == _NONE else files.checkpoint_path(self._directory, step)

    def _oldest(self) -> int:
        there = files.saved_steps(self._directory)
        self._done &= set(there)  # a run that repeats a step saves it again
        for step in sorted(self._todo - set(there)):
            print(
                f"{files.checkpoint_path(self._directory, step)} was deleted before its turn and "
                "is skipped. To have it scored, let training keep more checkpoints: "
                "SaveCheckpointConfig.keep.",
                flush=True,
            )
        self._todo = {step for step in there if self._is_waiting(step)}
        if not self._todo:
            return _NONE
        oldest = min(self._todo)
        self._given[oldest] = self._stamp(oldest)
        self._todo.remove(oldest)
        return oldest

    def _is_waiting(self, step: int) -> bool:
        """Look at each checkpoint once, and again only at those that were given and are not done.

        A series may have a thousand, each look at which is a request to a bucket.
        """
        if step in self._done or step in self._todo:
            return step in self._todo
        if self._is_done(files.checkpoint_path(self._directory, step)):
            self._done.add(step)
            return False
        given = self._given.get(step)
        return given is None or given != self._stamp(step)

    def _stamp(self, step: int) -> tuple[int, Any]:
        return files.stamp(files.checkpoint_path(self._directory, step))


def _local(directory: str) -> pathlib.Path:
    return paths.of(paths.stored(directory, "The path of a run directory"))


def _wait(seconds: float, directory: str) -> None:
    """Sleep in as many intervals as every other process does.

    Raises:
        checks.Preempted: when asked to stop meanwhile.
    """
    ticks = max(1, round(seconds / _TICK))
    with preemption.StopRequest(NOTICE) as stop:
        for _ in range(ticks):
            if stop.requested:
                raise checks.Preempted(
                    f"Stopped by {stop.reason} while waiting for checkpoints in {directory}. Run "
                    "the same command to resume."
                )
            time.sleep(seconds / ticks)
