"""A process that fails ends all others, with its exit code.

All processes compute together: without this, the others would wait in a collective for one that is
gone. A process that fails publishes its message and exit code over the `Connections`, where a
thread of every other process receives them; all then leave together. A process that is killed
publishes nothing, but its connection ends. The same threads agree on requests to stop.

If process 0 is killed, jax's service ends with it, and jax may abort the others (134) just after
they have printed the message.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from idode_gin import checks
from idode_gin.processes import output
from idode_gin.processes.agreed_stop import AgreedStop
from idode_gin.processes.connections import Connections

EXIT_LOST = 1
"""Exit code of the others if a process was killed."""
_LOST = "it ended without a message. Was it killed, or is its machine gone?"
_PERIOD = 0.2
_PATIENCE = 10.0
"""Seconds that a process that is ready to leave waits for the others."""
_MOMENT = 3.0
"""Seconds within which the loss of a process is noticed."""
_FOR_GOOD = 60.0
_OF_COLLECTIVES = {"JaxRuntimeError", "XlaRuntimeError"}


class _Watch:
    """A thread that receives what other processes publish, until all are done."""

    def __init__(self, connections: Connections) -> None:
        self.last_act: Callable[[], None] | None = None
        self.is_leaving = threading.Event()
        self.stop = AgreedStop(connections.publish, connections.index, connections.count)
        self._connections, self._is_closing = connections, threading.Event()
        self._keys = [f"done/{index}" for index in range(connections.count)]
        self._thread = threading.Thread(target=self._run, name="failures", daemon=True)
        self._thread.start()

    def close(self, *, wait: bool) -> None:
        """End the thread and the connections; with `wait`, when all processes do so."""
        self.stop.publish_polls()
        self._connections.publish(self._keys[self._connections.index])
        if not wait:
            self._is_closing.set()
        self._thread.join()
        self._connections.close()

    def fail(self, code: int, message: str) -> NoReturn:
        """End this process and all others."""
        self._connections.publish("failure", [self._connections.index, code, message])
        self._leave(code)

    def _run(self) -> None:
        while not (self._is_closing.is_set() or self._are_all_done()):
            self._receive()
            index, code, message = self._connections.found.get("failure", (None, 0, ""))
            if index is None:
                self.stop.look(self._connections.found)
            elif index != self._connections.index:
                self.is_leaving.set()
                failed = "" if code == checks.EXIT_PREEMPTED else " failed"
                output.complain(f"stopped: process {index}{failed}: {message}")
                if self.last_act is not None:
                    with contextlib.suppress(Exception):  # the first failure is the one to report
                        self.last_act()
                self._leave(code)

    def _receive(self) -> None:
        for process in self._connections.wait(_PERIOD):
            if self._keys[process] not in self._connections.found:
                self._connections.publish("failure", [process, EXIT_LOST, _LOST])
                self._connections.publish(self._keys[process])

    def _are_all_done(self) -> bool:
        return all(key in self._connections.found for key in self._keys)

    def _leave(self, code: int) -> NoReturn:
        """Exit when all processes are ready to: process 0 last, or jax aborts the others.

        Not by `sys.exit`, which lets jax wait for processes that are stuck.
        """
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        deadline, is_first = time.monotonic() + _PATIENCE, self._connections.index == 0
        self._connections.publish(self._keys[self._connections.index])
        if threading.current_thread() is not self._thread:
            self._thread.join(_PATIENCE)
        while self._connections.is_open and time.monotonic() < deadline:
            if self._are_all_done() and not is_first:
                break
            self._receive()
        os._exit(code)


_watch: _Watch | None = None


def watch(connections: Connections) -> None:
    """Begin to watch the other processes, in a thread, until `until_done` is left."""
    global _watch
    _watch = _Watch(connections)


def is_watching() -> bool:
    """Return True where several processes are connected."""
    return _watch is not None


@contextlib.contextmanager
def until_done() -> Iterator[None]:
    """Context that ends what `watch` begins in it: with all processes, unless an error leaves it.

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
