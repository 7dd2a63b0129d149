"""Where several processes work together, one that fails takes the others with it.

What one process computes, all compute together: without this, the others would wait for one that
is gone, for as long as the scheduler lets them. A process that fails says so in jax's key-value
store, which a thread of every other process looks at once a second; then all leave with the same
exit code. A process that is killed says nothing: jax's own heartbeat tells the others, later.
"""

import contextlib
import json
import os
import sys
import threading
import time
from typing import NoReturn

from idode_gin.runtime import processes

_KEY = "idode_gin/failure"
_PERIOD = 1.0
_PATIENCE = 10.0
"""Seconds that one who fails gives the others to notice."""


class Watch:
    """A context in which a failure of another process ends this one; of one process, nothing.

    Entered once jax has connected the processes.
    """

    def __init__(self) -> None:
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watch":
        if processes.client() is not None:
            self._thread = threading.Thread(target=self._look, name="shared-fate", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(_PERIOD):
            try:
                found = json.loads(processes.client().key_value_try_get(_KEY))
            except Exception:  # there is none, or nobody to ask any more
                continue
            if not self._done.is_set() and found["process"] != processes.index():
                print(
                    f"stopped: process {found['process']} failed: {found['message']}",
                    file=sys.stderr,
                )
                _leave(found["code"])


def fail(code: int, message: str) -> None:
    """Ends this process and all others with `code`. Of one process: returns at once."""
    client = processes.client()
    if client is None:
        return
    failure = json.dumps({"process": processes.index(), "code": code, "message": message})
    with contextlib.suppress(Exception):  # another one was first
        client.key_value_set(_KEY, failure)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Not by way of `sys.exit`: jax would wait there for processes that are stuck."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(Exception):
        processes.client().wait_at_barrier(_KEY, int(_PATIENCE * 1000))
    if processes.index() == 0:
        time.sleep(_PERIOD)  # the store is here: jax aborts whoever sees it disappear
    os._exit(code)
