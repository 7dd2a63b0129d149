"""A request to stop: KeyboardInterrupt in whatever the program is doing."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from idode_gin.processes import preemption

_SIGNALS = (*preemption.SIGNALS, *preemption.MORE_SIGNALS)
_is_asked = threading.Event()


@contextlib.contextmanager
def on_signals() -> Iterator[None]:
    """Context in which signals ask the program to stop; a second request ends it at once."""
    _is_asked.clear()
    more = [each for each in preemption.MORE_SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
    before = {number: signal.signal(number, _stop) for number in (*preemption.SIGNALS, *more)}
    try:
        yield
    finally:
        _is_asked.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def check() -> None:
    """Raise KeyboardInterrupt if a signal asked to stop.

    Its handler does so already, but Python drops what is raised while it collects garbage.
    """
    if _is_asked.is_set():
        raise KeyboardInterrupt


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise, so that unfinished files are removed; a second request ends the process at once."""
    first = time.monotonic()

    def again(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT or time.monotonic() - first >= preemption.SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for each in _SIGNALS:
        if signal.getsignal(each) == _stop:
            signal.signal(each, again)
    _is_asked.set()
    raise KeyboardInterrupt
