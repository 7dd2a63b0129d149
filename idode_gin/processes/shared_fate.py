"""Where several processes work together, one that fails takes the others with it.

What one process computes, all compute together: without this, the others would wait for one that
is gone, for as long as the scheduler lets them. A process that fails says so in jax's key-value
store, which a thread of every other process looks at once a second; then all leave with the same
exit code. One that is killed says nothing: the end of its lifeline does, to process 0, which tells
the others. Where no lifeline can be had, jax's own heartbeat tells, minutes later. One that is
asked to stop asks the others the same way.
"""

import contextlib
import itertools
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from idode_gin.processes import agreed_stop, joining, lifelines

EXIT_LOST = 1
"""Exit code of all others where one ended without a word."""
_FAILURE = "failure"
_LIFELINE = "lifeline"
_PERIOD = 1.0
_PERIOD_URGENT = 0.05
_PATIENCE = 10.0
"""Seconds that one who fails gives the others to notice."""
_MOMENT = 3.0
_FOR_GOOD = 60.0
_OF_COLLECTIVES = {"JaxRuntimeError", "XlaRuntimeError"}
_numbers = itertools.count()
_prefix = "idode_gin/fate/0/"
"""Of the keys of the last watch."""


class Watch:
    """A context in which a failure of another process ends this one; of one process, nothing.

    Entered once jax has connected the processes, by all of them; within another one, it does
    nothing.
    """

    _current: "Watch | None" = None

    def __init__(self) -> None:
        self.last_act: Callable[[], None] | None = None
        self.is_leaving = threading.Event()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watch":
        global _prefix
        if joining.client() is not None and Watch._current is None:
            Watch._current = self
            _prefix = f"idode_gin/fate/{next(_numbers)}/"
            self.stop = agreed_stop.AgreedStop(_prefix)
            self._lines = lifelines.Lifelines()
            self._thread = threading.Thread(
                target=self._look, args=(self._lines,), name="shared-fate", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            return
        self._done.set()
        self._thread.join()
        self.stop.tell()
        self._lines.close()
        Watch._current = None

    def _look(self, lines: lifelines.Lifelines) -> None:
        is_connected = joining.index() == 0 and _listen(lines)
        while not self._done.is_set():
            is_urgent = self.stop.is_agreeing or not is_connected
            lost = lines.wait(_PERIOD_URGENT if is_urgent else _PERIOD)
            found = _store()
            if not is_connected and _LIFELINE in found:
                is_connected = _connect(lines, *json.loads(found[_LIFELINE]))
            failure = json.loads(found[_FAILURE]) if _FAILURE in found else None
            if failure is None and lost is not None:
                failure = _lost(lost)
            if failure is None or failure["process"] == joining.index():
                self.stop.look(found)
            elif not self._done.is_set():
                self.is_leaving.set()
                said = f"stopped: process {failure['process']} failed: {failure['message']}"
                print(said, file=sys.stderr)
                if self.last_act is not None:
                    with contextlib.suppress(Exception):  # what failed first counts
                        self.last_act()
                _leave(failure["code"], is_complete=not failure.get("lost", False))


def ask_to_stop() -> None:
    """Asks all processes to stop; from any thread, within a watch."""
    if Watch._current is not None:
        Watch._current.stop.ask()


def poll() -> bool:
    """Whether to stop now: the same answer, poll by poll, in all processes. Within a watch."""
    assert Watch._current is not None
    return Watch._current.stop.poll()


def before_leaving(act: Callable[[], None] | None) -> None:
    """What is done, in a thread, before another process makes this one leave; None for nothing."""
    if Watch._current is not None:
        Watch._current.last_act = act


def give_way(error: BaseException) -> None:
    """Waits where what failed here may be what the loss of another process does to the others.

    Collectives then raise before a watch has noticed. Once it has, it ends this process, with the
    reason; this does not return then. After a moment without, the error is one of this process.
    """
    watch = Watch._current
    names = {each.__name__ for each in type(error).__mro__}
    if watch is not None and names & _OF_COLLECTIVES and watch.is_leaving.wait(_MOMENT):
        time.sleep(_FOR_GOOD)


def fail(code: int, message: str) -> None:
    """Ends this process and all others with `code`. Of one process: returns at once."""
    if joining.client() is None:
        return
    _tell({"process": joining.index(), "code": code, "message": message})
    _leave(code)


def _listen(lines: lifelines.Lifelines) -> bool:
    """True; where nobody can be listened to, others find that out."""
    port, secret = 0, secrets.token_hex(16)
    with contextlib.suppress(OSError):
        port = lines.listen(secret)
    with contextlib.suppress(Exception):
        joining.client().key_value_set(f"{_prefix}{_LIFELINE}", json.dumps([port, secret]))
    return True


def _connect(lines: lifelines.Lifelines, port: int, secret: str) -> bool:
    """True, connected or not: there is one try."""
    with contextlib.suppress(OSError):
        lines.connect(joining.host(), port, secret, joining.index())
    return True


def _lost(process: int) -> dict[str, Any]:
    """What process 0 noticed, told to the others; of process 0, there is nobody left to tell."""
    message = "it ended without a word. Was it killed, or is its machine gone?"
    failure = {"process": process, "code": EXIT_LOST, "message": message, "lost": True}
    _tell(failure)
    return failure


def _tell(failure: dict[str, Any]) -> None:
    with contextlib.suppress(Exception):  # another one was first, or the store is gone
        joining.client().key_value_set(f"{_prefix}{_FAILURE}", json.dumps(failure))


def _store() -> dict[str, str]:
    """What all have set so far; nothing if there is nobody to ask any more."""
    try:
        found = joining.client().key_value_dir_get(_prefix)
    except Exception:
        return {}
    return {key.removeprefix(_prefix): value for key, value in found}


def _leave(code: int, *, is_complete: bool = True) -> NoReturn:
    """Not by way of `sys.exit`: jax would wait there for processes that are stuck.

    Args:
        code: to exit with.
        is_complete: whether all processes are there to leave together.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if is_complete:
        with contextlib.suppress(Exception):
            joining.client().wait_at_barrier(f"{_prefix}left", int(_PATIENCE * 1000))
    if joining.index() == 0:  # the store is here: jax aborts whoever sees it disappear
        time.sleep(_PERIOD if is_complete else 2 * _PERIOD)
    os._exit(code)
