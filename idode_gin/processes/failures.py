"""A process that fails ends all others, with its exit code.

All processes compute together: without this, the others would wait in a collective for one that is
gone. A process that fails publishes its message and exit code over the `Connections`, where a
thread of every other process receives them; all then leave together. A process that is killed
publishes nothing, but its connection ends. The same threads agree on requests to stop.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from idode_gin.processes.agreed_stop import AgreedStop
from idode_gin.processes.connections import Connections

EXIT_LOST = 1
"""Exit code of the others if a process was killed."""
_PERIOD = 0.2
_PATIENCE = 10.0
"""Seconds that a process that is ready to leave waits for the others."""
_MOMENT = 3.0
"""Seconds within which the loss of a process is noticed."""
_FOR_GOOD = 60.0
_OF_COLLECTIVES = {"JaxRuntimeError", "XlaRuntimeError"}
_FAILURE = "failure"


class _Watch:
    """A thread that receives what other processes publish, until all are done."""

    def __init__(self, connections: Connections) -> None:
        self.last_act: Callable[[], None] | None = None
        self.is_leaving = threading.Event()
        self.stop = AgreedStop(connections.publish, connections.index, connections.count)
        self._connections, self._is_closing = connections, threading.Event()
        self._thread = threading.Thread(target=self._run, name="failures", daemon=True)
        self._thread.start()

    def close(self, *, wait: bool) -> None:
        """End the thread and the connections; with `wait`, when all processes do so."""
        self.stop.publish_polls()
        self._set_done(self._connections.index)
        if not wait:
            self._is_closing.set()
        self._thread.join()
        self._connections.close()

    def fail(self, code: int, message: str) -> NoReturn:
        """End this process and all others."""
        self._publish_failure(self._connections.index, code, message)
        self._leave(code)

    def _run(self) -> None:
        while not (self._are_all_done() or self._is_closing.is_set()):
            self._receive(_PERIOD)
            failure = self._connections.found.get(_FAILURE)
            if failure is None:
                self.stop.look(self._connections.found)
            elif failure["process"] != self._connections.index:
                self.is_leaving.set()
                print(
                    f"stopped: process {failure['process']} failed: {failure['message']}",
                    file=sys.stderr,
                )
                if self.last_act is not None:
                    with contextlib.suppress(Exception):  # the first failure is the one to report
                        self.last_act()
                self._leave(failure["code"])

    def _receive(self, seconds: float) -> None:
        for process in self._connections.wait(seconds):
            if _done(process) not in self._connections.found:
                message = "it ended without a message. Was it killed, or is its machine gone?"
                self._publish_failure(process, EXIT_LOST, message)
                self._set_done(process)

    def _leave(self, code: int) -> NoReturn:
        """Exit when all processes are ready to: process 0 last, or jax aborts the others.

        Not by `sys.exit`, which lets jax wait for processes that are stuck.
        """
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        deadline = time.monotonic() + _PATIENCE
        self._set_done(self._connections.index)
        if threading.current_thread() is not self._thread:
            self._thread.join(_PATIENCE)
        is_first = self._connections.index == 0
        while self._connections.is_open and (is_first or not self._are_all_done()):
            if time.monotonic() > deadline:
                break
            self._receive(_PERIOD)
        os._exit(code)

    def _publish_failure(self, process: int, code: int, message: str) -> None:
        failure = {"process": process, "code": code, "message": message}
        self._connections.publish(_FAILURE, failure)

    def _set_done(self, process: int) -> None:
        self._connections.publish(_done(process))

    def _are_all_done(self) -> bool:
        found = self._connections.found
        return all(_done(each) in found for each in range(self._connections.count))


_watch: _Watch | None = None


def _done(process: int) -> str:
    return f"done/{process}"


def watch(connections: Connections) -> None:
    """Begin to watch the other processes, in a thread, until `until_done` is left."""
    global _watch
    assert _watch is None
    _watch = _Watch(connections)


def is_watching() -> bool:
    """Return True where several processes are connected."""
    return _watch is not None


@contextlib.contextmanager
def until_done() -> Iterator[None]:
    """Context that ends what `watch` begins in it, with all other processes unless it fails.

    Until then a failure of another process ends this one.
    """
    global _watch
    before, is_done = _watch, False
    try:
        yield
        is_done = True
    finally:
        if _watch is not None and _watch is not before:
            _watch.close(wait=is_done)
            _watch = before


def ask_to_stop() -> None:
    """Ask all processes to stop; from any thread."""
    if _watch is not None:
        _watch.stop.ask()


def poll() -> bool:
    """Return True if all processes must stop now: the same answer, poll by poll, in each."""
    assert _watch is not None
    return _watch.stop.poll()


def before_leaving(act: Callable[[], None] | None) -> None:
    """Set what is done, in a thread, before another process ends this one; None for nothing."""
    if _watch is not None:
        _watch.last_act = act


def give_way(error: BaseException) -> None:
    """Wait if `error` may come from the loss of another process.

    A collective may raise before the loss is noticed. Once it is, this process ends with a message
    about the loss, and this function does not return. Otherwise it returns after a moment.
    """
    names = {each.__name__ for each in type(error).__mro__}
    if _watch is not None and names & _OF_COLLECTIVES and _watch.is_leaving.wait(_MOMENT):
        time.sleep(_FOR_GOOD)


def fail(code: int, message: str) -> None:
    """End this process and all others with `code`. Return at once if there are no others."""
    if _watch is not None:
        _watch.fail(code, message)
