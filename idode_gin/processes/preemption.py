"""Stopping when asked: the signals of schedulers and of Ctrl-C, polled between steps.

Light to import: a program handles signals before it knows whether it needs jax.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from idode_gin import checks
from idode_gin.processes import joining, shared_fate

SIGNALS = (signal.SIGTERM, signal.SIGINT)
TRAINING = "stopping after this step. Again to stop at once, unsaved."
RESULTS = "stopping before the next batch. Again to stop at once."
GRACE = 5.0
"""Seconds that a loop has to come to its next poll, where it can also be left in mid-batch."""
_asked_outside = 0  # the signal that the outermost `OutsideLoop` got; 0 for none
_innermost: "OutsideLoop | None" = None
_is_starting = False


class StoppedOutsideLoop(KeyboardInterrupt):
    """The process was asked to stop while nobody polled. Programs exit with 75.

    A KeyboardInterrupt, so that no `except Exception` on the way takes it for damaged data.
    """


class _Handlers:
    """A context in which signals are handled, and a thread hears of them at once.

    The signals reach the thread through a socket that C code writes to, so that they count even
    while the main thread is inside a compilation that lasts for minutes. Outside the main thread,
    where Python allows no handlers, nothing is installed.
    """

    def __init__(self, notice: str, last_words: Callable[[str], str] | None = None) -> None:
        self._notice, self._last_words = notice, last_words
        self._leaving, self._is_left = threading.Lock(), False
        self._signal = 0
        self._previous: dict[signal.Signals, object] = {}
        self._previous_fd = -1

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for each in SIGNALS:
            self._previous[each] = signal.signal(each, self._handle)
        threading.Thread(target=self._watch, args=(self._reader,), daemon=True).start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._leaving:
            self._is_left = True
        if not self._previous:
            return
        for each, handler in self._previous.items():
            # None: a handler that C code installed, which Python cannot put back.
            signal.signal(each, signal.SIG_DFL if handler is None else handler)  # type: ignore
        self._previous = {}
        signal.set_wakeup_fd(self._previous_fd)
        self._writer.close()  # ends the watching thread

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Does nothing: with a Python handler in place, C code writes the number to the socket."""

    def _watch(self, reader: socket.socket) -> None:
        with reader:
            while True:
                try:
                    numbers = reader.recv(64)
                except TimeoutError:
                    self._leave_in_between()
                    continue
                if not numbers:
                    return
                for number in numbers:
                    if number not in self._previous:
                        continue
                    if self._signal:
                        os._exit(128 + number)
                    self._signal = number
                    name = signal.Signals(number).name
                    print(f"\n{name}: {self._notice}", file=sys.stderr, flush=True)
                    self._asked(number)
                    reader.settimeout(GRACE)

    def _leave_in_between(self) -> None:
        """Ends the process from this thread, where there are last words to say."""
        with self._leaving:
            if self._is_left or self._last_words is None:
                return
            code = checks.EXIT_PREEMPTED
            try:
                said = f"stopped: {self._last_words(signal.Signals(self._signal).name)}"
            except OSError as error:
                said, code = f"error: {error}", checks.EXIT_BAD_INPUT
            print(said, file=sys.stderr, flush=True)
            shared_fate.fail(code, said)
            os._exit(code)

    def _asked(self, number: int) -> None:
        """Called in the watching thread, for the first signal."""


class OutsideLoop(_Handlers):
    """A context around a whole program: SIGTERM and SIGINT raise `StoppedOutsideLoop` in it.

    Where a loop polls a `StopRequest`, that one takes over until it is left. A second signal ends
    the process at once, with exit code 128 + signal.

    An exception raised at any moment may fall into a callback or a destructor, where Python prints
    it and goes on: after `GRACE` seconds the process ends then with exit code 75, unless a loop has
    begun, which stops at its first poll. So it does where other code has caught the exception.

    Python raises nothing in C code that does not return, such as a compilation: after `GRACE`
    seconds of that the process ends with exit code 75, and several processes together.
    """

    def __init__(self) -> None:
        super().__init__("stopping. Again to stop at once.", _said_outside)

    def __enter__(self) -> "OutsideLoop":
        global _asked_outside, _innermost
        self._outer = _innermost
        if self._outer is None:
            _asked_outside = 0
        self._signal = _asked_outside
        self._hook, self._previous_hook = self._unraisable, sys.unraisablehook
        sys.unraisablehook, _innermost = self._hook, self
        self._install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _asked_outside, _innermost
        _innermost = self._outer
        if self._outer is None:
            _asked_outside = 0
        if sys.unraisablehook is self._hook:  # else somebody else's hands on to it
            sys.unraisablehook = self._previous_hook
        super().__exit__(kind, error, trace)

    def taken_over(self) -> None:
        """From here on a loop polls: it answers a request that was not yet."""
        self._last_words = None
        if self._outer is not None:
            self._outer.taken_over()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        global _asked_outside
        said = _said_outside(signal.Signals(number).name)
        if _is_starting:
            _leave_from_handler(said)
        _asked_outside = number
        self._last_words = None  # from here on the exception is on its way
        raise StoppedOutsideLoop(said)

    def _unraisable(self, unraisable: Any) -> None:
        """Called for an exception that Python cannot raise where it was raised."""
        if isinstance(unraisable.exc_value, StoppedOutsideLoop):
            self._last_words = _said_outside
        else:
            self._previous_hook(unraisable)


def _said_outside(reason: str) -> str:
    return (
        f"Stopped by {reason} while starting or finishing. Nothing that was saved is lost, and the "
        "same command starts again."
    )


def _leave_from_handler(said: str) -> None:
    """Ends the process inside a handler, which may have interrupted a `print`."""
    os.write(2, f"stopped: {said}\n".encode())
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(checks.EXIT_PREEMPTED)


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """A context around a program's first imports, too: a request to stop exits with 75.

    Until `started` is called, at once and without an exception: imports run callbacks, in which one
    is lost, and there is nothing to save.
    """
    global _is_starting
    _is_starting = True
    try:
        with OutsideLoop():
            yield
    except KeyboardInterrupt as error:
        print(f"stopped: {error}", file=sys.stderr, flush=True)
        sys.exit(checks.EXIT_PREEMPTED)
    finally:
        _is_starting = False


def started() -> None:
    """Says that there may be something to save or to clean up from here on."""
    global _is_starting
    _is_starting = False


class StopRequest(_Handlers):
    """A context in which SIGTERM and SIGINT set `requested` instead of ending the process.

    Training, evaluation and sampling alike poll it, save what they have and raise
    `checks.Preempted`. A second signal ends the process at once, with exit code 128 + signal.

    Several processes stop together: whichever is asked, they agree on one poll to stop at. So all
    must poll equally often.

    Outside the main thread, where Python allows no handlers, nothing is installed and nothing is
    ever requested.

    Args:
        notice: what the first signal prints after its name.
        last_words: given the signal's name, saves what there is, without the other processes, and
            says so. Called in a thread, `GRACE` seconds after the signal, where the context was not
            left until then: in mid compilation, or in a batch that takes long. All processes then
            end with exit code 75; also those that were not asked save what they have, as they do
            where another one fails. Without it, only a poll ends the loop.
    """

    def __init__(
        self, notice: str = TRAINING, last_words: Callable[[str], str] | None = None
    ) -> None:
        super().__init__(notice, last_words)
        self._is_agreed = False
        self._fate = shared_fate.Watch()

    @contextlib.contextmanager
    def with_last_words(self, last_words: Callable[[str], str]) -> Iterator[None]:
        """A part of the context that has `last_words`: where a compilation may last for minutes."""
        if joining.count() > 1:  # they save together, and not in mid-batch
            yield
            return
        with self.with_nothing_to_save(last_words):
            yield

    @contextlib.contextmanager
    def with_nothing_to_save(self, last_words: Callable[[str], str]) -> Iterator[None]:
        """The same where `last_words` only says so: then several processes can be left anywhere."""
        self._last_words = last_words
        try:
            yield
        finally:
            with self._leaving:  # or they are being said, and this is the end
                self._last_words = None

    @property
    def requested(self) -> bool:
        """Whether to stop. With several processes a poll, with the same answer on all of them."""
        if joining.count() == 1:
            return self._signal != 0
        self._is_agreed = self._is_agreed or shared_fate.poll()
        return self._is_agreed

    @property
    def reason(self) -> str:
        """The name of the signal, for messages."""
        return signal.Signals(self._signal).name if self._signal else "preemption"

    def stop_at(self, step: int) -> bool:
        """Whether to stop after `step`; with several processes, the same answer on all of them."""
        return self.requested

    def __enter__(self) -> "StopRequest":
        self._fate.__enter__()
        shared_fate.before_leaving(self._save_for_others)
        if _innermost is not None:
            _innermost.taken_over()
        self._signal = _asked_outside
        if self._signal:
            self._asked(self._signal)
        self._install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        shared_fate.before_leaving(None)
        self._fate.__exit__()

    def _save_for_others(self) -> None:
        """What is done in a thread where another process makes this one leave in mid-batch."""
        with self._leaving:
            if not self._is_left and self._last_words is not None:
                self._last_words("another process")

    def _asked(self, number: int) -> None:
        if joining.count() > 1:
            shared_fate.ask_to_stop()
