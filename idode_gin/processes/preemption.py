"""Stopping when a scheduler or Ctrl-C asks for it: raised outside loops, polled inside them.

Light to import: a program handles signals before it knows whether it needs jax.
"""

import contextlib
import math
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from idode_gin import checks
from idode_gin.processes import failures, joining, output

SIGNALS = (signal.SIGTERM, signal.SIGINT)
MORE_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Ways of batch systems and closed terminals to ask for the same. Handled where they would end the
process: not if they are ignored, as SIGHUP is by `nohup`, or have a handler."""
SAME_REQUEST = 1.0
"""Seconds after the first signal in which another one is the same request: SLURM sends two. Ctrl-C
never is. SIGXCPU always is: beyond its limit, the kernel sends one for every second on the CPU."""
TRAINING = "stopping after this step. Again to stop at once, unsaved."
RESULTS = "stopping before the next batch. Again to stop at once."
_MOMENT = 0.05
"""Seconds in which the reader of the output ends, if the same Ctrl-C reached it."""
GRACE = 5.0
"""Seconds until a thread may end the process, where the main thread does not react."""
LastWords = Callable[[str], str]
"""Saves what there is, given a signal's name, and returns the message to end with."""
_listener: "_Listener | None" = None
_is_starting = False
_leaving = threading.Lock()
"""Held while last words are said and where they become invalid."""


class StoppedOutsideLoop(KeyboardInterrupt):
    """The process was asked to stop outside a loop. Programs exit with 75.

    A KeyboardInterrupt, so that no `except Exception` on the way takes it for damaged data.
    """


class _Listener:
    """Handlers of the signals, and a thread that receives them from C code at once.

    Python's handlers run only when C code returns, and a compilation may take minutes.
    """

    def __init__(self) -> None:
        self.received = 0
        self.loops: list[StopRequest] = []
        self.is_answered = False  # by an exception or by a loop
        self._heard: float | None = None  # by the thread, and when
        self._handled: float | None = None
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        writer = self._writer.fileno()
        self._previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        fatal = (each for each in MORE_SIGNALS if signal.getsignal(each) == signal.SIG_DFL)
        numbers = (*SIGNALS, *fatal)
        self._previous = {each: signal.signal(each, self._handle) for each in numbers}
        self._hook, self._previous_hook = self._unraisable, sys.unraisablehook
        sys.unraisablehook = self._hook
        threading.Thread(target=self._receive, daemon=True).start()

    def close(self) -> None:
        for each, handler in self._previous.items():
            # None is a handler that C code has installed, which Python cannot set again.
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._previous_fd)
        if sys.unraisablehook is self._hook:  # otherwise another hook calls it
            sys.unraisablehook = self._previous_hook
        with _leaving:
            self.is_answered = True
        self._writer.close()  # ends the thread

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_repeated = _is_same_request(number, self._handled)
        _leave_closed_outputs()
        if not is_repeated:
            self._handled, self.received = time.monotonic(), number
        if self.loops or is_repeated:
            return
        message = nothing_lost(signal.Signals(number).name)
        if _is_starting:
            os.write(2, f"stopped: {message}\n".encode())  # a `print` may have been interrupted
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(checks.EXIT_PREEMPTED)
        self.is_answered = True
        raise StoppedOutsideLoop(message)

    def _unraisable(self, unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, StoppedOutsideLoop):
            self.is_answered = False
        else:
            self._previous_hook(unraisable)

    def _receive(self) -> None:
        with self._reader:
            asked = math.inf  # when the process should end, or be asked again
            while True:
                if self._heard is not None:  # signals that are repeated do not prolong the wait
                    self._reader.settimeout(max(0.01, asked - time.monotonic()))
                try:
                    numbers = self._reader.recv(64)
                except TimeoutError:
                    self._say_last_words()
                    asked = time.monotonic() + GRACE
                    continue
                if not numbers:
                    return
                for number in filter(self._previous.__contains__, numbers):
                    if _is_same_request(number, self._heard):
                        continue
                    if self._heard is not None:
                        os._exit(128 + number)
                    _leave_closed_outputs()  # before a loop sees the request, and prints
                    self._heard, self.received = time.monotonic(), number
                    name, loops = signal.Signals(number).name, [*self.loops]
                    notice = loops[-1].notice if loops else "stopping. Again to stop at once."
                    if loops and joining.count() > 1:
                        failures.ask_to_stop()
                    asked = self._heard + GRACE
                    output.complain(f"\n{name}: {notice}")

    def _say_last_words(self) -> None:
        with _leaving:
            last_words = self.loops[-1].last_words if self.loops else nothing_lost
            if last_words is None or (not self.loops and self.is_answered):
                return
            code, label = checks.EXIT_PREEMPTED, "stopped"
            try:
                message = last_words(signal.Signals(self.received).name)
            except (checks.NonFiniteError, OSError, ValueError, MemoryError) as error:
                is_bad = isinstance(error, checks.NonFiniteError)
                code = checks.EXIT_NON_FINITE if is_bad else checks.EXIT_BAD_INPUT
                label, message = "error", str(error)
            except Exception as error:  # without this thread, a second signal would do nothing
                traceback.print_exc()
                code, label, message = 1, "error", f"{type(error).__name__}: {error}"
            output.complain(f"{label}: {message}")
            failures.fail(code, message)
            os._exit(code)


def _is_same_request(number: int, first: float | None) -> bool:
    if first is None or number == signal.SIGINT:
        return False
    return number == signal.SIGXCPU or time.monotonic() - first < SAME_REQUEST


def _leave_closed_outputs() -> None:
    """Discard what is written to a terminal or pipe that was closed: it would raise an OSError.

    Ctrl-C goes to the reader of the pipe as well, such as `tee`, which has a moment here to end.
    """
    time.sleep(_MOMENT)
    outputs = select.poll()
    for number in (1, 2):
        outputs.register(number, 0)
    for number, events in outputs.poll(0):
        if events & (select.POLLHUP | select.POLLERR):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)


def nothing_lost(reason: str) -> str:
    """Return the message of a process that had nothing to save: last words of a start."""
    return (
        f"Stopped by {reason} while starting or finishing. Nothing that was saved is lost, and the "
        "same command starts again."
    )


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Context around a whole program: a signal raises `StoppedOutsideLoop` in it.

    The signals are SIGTERM, SIGINT and `MORE_SIGNALS`. Inside it, a `StopRequest` handles them
    until it is left. A second one, unless it is the `SAME_REQUEST`, ends the process at once, with
    exit code 128 + signal. Within another such context, and outside the main thread, where Python
    allows no handlers, it does nothing.

    If the exception falls into a callback or a destructor, Python drops it. Then a loop that begins
    within `GRACE` seconds stops at its first poll; without one, the process ends with exit code 75.
    A loop also stops if other code has caught the exception.

    In C code that does not return, such as a compilation, Python raises nothing: after `GRACE`
    seconds this and all other processes end with exit code 75.
    """
    global _listener
    if _listener is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _listener = _Listener()
    try:
        yield
    finally:
        _listener.close()
        _listener = None


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Context around a program, including its first imports: a request to stop exits with 75.

    It does so at once and without an exception until `started` is called: imports run callbacks,
    in which an exception is lost, and there is nothing to save.
    """
    global _is_starting
    _is_starting = True
    try:
        with stoppable():
            yield
    except KeyboardInterrupt as error:
        output.complain(f"stopped: {error}")
        sys.exit(checks.EXIT_PREEMPTED)
    finally:
        _is_starting = False


def started() -> None:
    """Declare that there may be something to save or to clean up from here on."""
    global _is_starting
    _is_starting = False


class StopRequest:
    """A context in which a signal sets `requested` instead of ending the process; see `stoppable`.

    Training, evaluation and sampling poll it, save what they have and raise `checks.Preempted`.

    Several processes stop together: if one is asked, they agree on one poll to stop at. So all must
    poll equally often. Outside the main thread nothing is ever requested.

    Args:
        notice: printed for the first signal, after its name.
        last_words: saves what there is without the other processes, given the signal's name, and
            returns a message. Called in a thread if the context is not left within `GRACE` seconds,
            as in a compilation or a long batch. All processes then end with exit code 75; the
            others save what they have first, as they do if another one fails. Without it, only a
            poll ends the loop.
    """

    def __init__(self, notice: str = TRAINING, last_words: LastWords | None = None) -> None:
        self.notice, self.last_words = notice, last_words
        self._listener: _Listener | None = None
        self._is_agreed = False
        self._stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def with_last_words(self, last_words: LastWords, *, saves: bool = True) -> Iterator[None]:
        """Part of the context that has `last_words`, because a compilation may take minutes.

        If it `saves`, several processes have none: they save together, and only between batches.
        """
        if not saves or joining.count() == 1:
            self.last_words = last_words
        try:
            yield
        finally:
            with _leaving:  # waits for the end of the process if a thread is saying them
                self.last_words = None

    @property
    def requested(self) -> bool:
        """True if the loop must stop. With several processes a poll, with one answer on all."""
        if joining.count() == 1:
            return self._received != 0
        self._is_agreed = self._is_agreed or failures.poll()
        return self._is_agreed

    @property
    def reason(self) -> str:
        """The name of the signal, for messages."""
        return signal.Signals(self._received).name if self._received else "preemption"

    @property
    def _received(self) -> int:
        return self._listener.received if self._listener is not None else 0

    def __enter__(self) -> "StopRequest":
        self._stack.enter_context(failures.until_done())
        joining.connect()
        failures.before_leaving(self._save_for_others)
        self._stack.enter_context(stoppable())
        if threading.current_thread() is threading.main_thread():
            self._listener = _listener
        if self._listener is not None:
            self._listener.loops.append(self)
            self._listener.is_answered = True
            if self._received and joining.count() > 1:
                failures.ask_to_stop()
        return self

    def __exit__(self, *error: Any) -> None:
        with _leaving:
            self.last_words = None
            if self._listener is not None:
                self._listener.loops.remove(self)
                # A loop that ends well has not polled since: what follows it must stop as well.
                self._listener.is_answered = self._received != 0 and error[0] is not None
        failures.before_leaving(None)
        self._stack.__exit__(*error)

    def _save_for_others(self) -> None:
        """Called in a thread before another process ends this one."""
        with _leaving:
            if self.last_words is not None:
                self.last_words("another process")
