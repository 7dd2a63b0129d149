"""Progress of a program: what it does and how far it is, on a terminal and elsewhere.

A phase that prints nothing for `LINE_PERIOD` seconds prints a line, from a thread: code in
C++, such as a compilation, reports nothing itself. Only process 0 prints.
"""

import contextlib
import functools
import io
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

LINE_PERIOD = 10.0
"""Seconds between lines, if no bar is shown."""


class _Heart:
    """The stack of open phases, and the thread that reports the innermost.

    The thread ends with the last phase.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()  # its lock is reentrant
        self._phases: list[Phase | Progress] = []
        self._last_line = -math.inf
        self.output: TextIO | None = None  # None: standard output
        self._thread: threading.Thread | None = None

    def enter(self, entered: "Phase | Progress") -> None:
        """Report `entered` until it is left or another phase is entered."""
        with self._changed:
            if not self._phases:
                self._last_line = time.monotonic()
            self._phases.append(entered)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="progress")
                self._thread.start()

    def leave(self, entered: "Phase | Progress") -> None:
        """Report no longer `entered`, nor what is still inside it."""
        with self._changed:
            if entered in self._phases:
                del self._phases[self._phases.index(entered) :]
                if self._phases:
                    self._phases[-1].leave_out(time.monotonic() - entered.began)
            self._changed.notify()

    def say(self, text: str) -> None:
        """Print a line without breaking a bar."""
        with self._changed:
            self._last_line = time.monotonic()
            if any(each.bar is not None for each in self._phases):
                import tqdm

                tqdm.tqdm.write(text)
            else:
                print(text, flush=True, file=self.output)

    def beat(self) -> None:
        """Print the line of the innermost phase, or refresh its bar, if a line is due."""
        with self._changed:
            if not self._phases or time.monotonic() - self._last_line < LINE_PERIOD:
                return
            innermost = self._phases[-1]
            if innermost.bar is None:
                outer = self._phases[-2] if len(self._phases) > 1 else None
                self.say(f"{getattr(outer, 'name_if_counted', '')}{innermost.line()}")
            else:
                self._last_line = time.monotonic()
                innermost.bar.refresh()

    def _run(self) -> None:
        with self._changed:
            try:
                while self._phases:
                    left = self._last_line + LINE_PERIOD - time.monotonic()
                    self._changed.wait(min(max(left, 0.01), LINE_PERIOD))
                    self.beat()
            except (OSError, ValueError):  # the output is closed: the program's own print raises
                pass
            finally:
                self._thread = None


_heart = _Heart()
beat, say = _heart.beat, _heart.say


class Phase:
    """A part of a program that may take long: see `phase`."""

    def __init__(self, what: str, total: int | None, done: int, unit: str) -> None:
        self.bar: Any = None
        self._what, self._unit = what, unit
        self._total, self.done, self._first = total, done, done
        self.began = self._mean_since = self._last_at = time.monotonic()
        self._last_count, self._pace_from = 0, (self.began, done)

    def show_bar(self) -> None:
        """Show a bar if there is a total and a terminal."""
        if self._total is not None and sys.stderr.isatty():
            import tqdm

            unit = self._unit.removesuffix("s")
            self.bar = tqdm.tqdm(
                desc=self._what,
                total=self._total,
                initial=self.done,
                unit=unit,
                dynamic_ncols=True,
                leave=None,  # not inside another bar
            )

    def advance(self, count: int = 1) -> None:
        """Report that `count` more are done."""
        now = time.monotonic()
        if self.done == self._first:  # the first batch may compile: it sets the pace only at first
            self._pace_from = (self._mean_since, self.done)
        elif self._pace_from[1] == self._first:
            self._pace_from = (self._last_at, self.done)
        self.done += count
        self._last_at, self._last_count = now, count
        if self.bar is not None:
            self.bar.update(count)

    def leave_out(self, seconds: float) -> None:
        """Leave time before the first is done, such as compilation, out of the mean time of one."""
        if self.done == self._first:
            self._mean_since += seconds

    @property
    def name_if_counted(self) -> str:
        """The beginning of lines of phases inside this one, which are parts of counted work."""
        return "" if self._total is None else f"{self._what}, "

    def line(self) -> str:
        """Return what is done and how far it is, as text."""
        now, made = time.monotonic(), self.done - self._first
        so_far = f"{duration(now - self.began)} so far"
        if self._total is None:
            return f"{self._what}: {so_far}"
        shown = f"{self._what}: {self.done}/{self._total} {self._unit}"
        if not made:
            return f"{shown}, {so_far}"
        return f"{shown}, {duration(self._left(now))} left"

    def _left(self, now: float) -> float:
        """Return the seconds left at the mean pace, counting down while a batch is computed.

        A batch that takes longer than the mean adds its delay once it is done.
        """
        assert self._total is not None
        since, done = self._pace_from
        pace = (self._last_at - since) / (self.done - done)
        rest = self._total - self.done
        running = min(now - self._last_at, pace * min(self._last_count, rest))
        return pace * rest - running


@contextlib.contextmanager
def phase(
    what: str, total: int | None = None, *, done: int = 0, unit: str = "images", bar: bool = True
) -> Iterator[Phase]:
    """A context whose progress is reported until it ends; one entered inside it takes its place.

    With a `total`, of which some may be `done`, a terminal shows a bar; without one (`bar`), and
    elsewhere, lines show how many are done and the time left, from the mean so far.
    """
    entered = Phase(what, total, done, unit)
    if not _is_first_process():
        yield entered
        return
    try:
        if bar:
            entered.show_bar()
        _heart.enter(entered)
        yield entered
    finally:
        _heart.leave(entered)
        if entered.bar is not None:
            entered.bar.close()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A context in which the lines of phases are the only ones on standard output."""
    _heart.output = sys.stdout
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        _heart.output = None


def first_call(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Return `function`, whose first call is a phase: a jitted function compiles in it."""
    is_first = True

    @functools.wraps(function)
    def called(*arguments: Any) -> Any:
        nonlocal is_first
        if not is_first:
            return function(*arguments)
        with phase(what):
            found = function(*arguments)
        is_first = False
        return found

    return called


class Progress:
    """Progress of training: a bar on a terminal, otherwise a line every `LINE_PERIOD` seconds.

    Args:
        start: first step.
        stop: last step.
        batch_size: images per step.
        enabled: False prints nothing.
        seconds: returns the seconds spent on training so far, for the speed; by default those of
            the wall clock.
    """

    def __init__(
        self,
        start: int,
        stop: int,
        batch_size: int,
        *,
        enabled: bool = True,
        seconds: Callable[[], float] | None = None,
    ) -> None:
        self._stop, self._batch_size = stop, batch_size
        self._enabled = enabled
        self._seconds = seconds or (lambda: time.monotonic())
        self.began = time.monotonic()
        self._first: tuple[float, float, int] | None = None
        self._line = f"training: step {start}/{stop}"
        self.bar: Any = None
        if enabled and sys.stderr.isatty():
            import tqdm

            self.bar = tqdm.tqdm(
                initial=start, total=stop, unit="step", dynamic_ncols=True, smoothing=0.1
            )

    def __enter__(self) -> "Progress":
        if self._enabled:
            _heart.enter(self)
        return self

    def __exit__(self, *error: object) -> None:
        _heart.leave(self)
        if self.bar is not None:
            self.bar.close()

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self._enabled:
            _heart.say(text)

    def leave_out(self, seconds: float) -> None:
        """Do nothing: phases inside training count in the time left, since more will come."""

    def line(self) -> str:
        """Return the last step that the device has finished, as text."""
        return self._line

    def update(self, step: int, bpd: float) -> None:
        """Report that the device has finished `step` (0 for none yet), and its training loss."""
        if step == 0:
            return
        now = (time.monotonic(), self._seconds(), step)
        if self._first is None:
            self._first = now  # the first step includes compilation
        wall, seconds, steps = (each - first for each, first in zip(now, self._first, strict=True))
        rate = steps / seconds * self._batch_size if steps and seconds > 0 else 0.0
        if self.bar is not None:
            self.bar.set_postfix_str(f"{bpd:.4f} bpd, {rate:.0f} images/s", refresh=False)
            self.bar.update(step - self.bar.n)
        elif rate:
            left = duration((self._stop - step) * wall / steps)
            self._line = (
                f"step {step}/{self._stop}  {bpd:.4f} bpd  {rate:.0f} images/s  {left} left"
            )
            if step == self._stop:
                self.say(self._line)
            elif self._enabled:
                _heart.beat()


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _is_first_process() -> bool:
    """Return True in process 0. Starts no devices unless there are several processes."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return True
    return jax.process_index() == 0
