"""Connections of the processes of a run: one from each process to process 0.

Process 0 passes on what any process publishes. The system closes the connections of a process that
ends, however it ends, so that the others notice it within 0.1 s. jax notices it after its
`heartbeat_timeout_seconds`, and aborts with a C++ stack trace: measured with jax 0.10.2 and a
timeout of 10 s, 9.4 s after process 1 was killed.
"""

import contextlib
import json
import multiprocessing.connection
import socket
import threading
from typing import Any

_LONGEST = 4096
_PATIENCE = 10.0
"""Seconds for sending to a process that does not read."""
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Seconds, and number of probes, until the system gives up a machine that does not answer."""


class Connections:
    """This process's ends of the connections: process 0 has one to each of the others.

    Args:
        index: of this process.
        count: number of processes.
        ends: open connections, by the index of the process at the other end.

    Attributes:
        found: everything that any process has published, by key.
    """

    def __init__(self, index: int, count: int, ends: dict[int, socket.socket]) -> None:
        self.index, self.count = index, count
        self.found: dict[str, Any] = {}
        self._ends, self._lock = ends, threading.Lock()
        self._unread = dict.fromkeys(ends, b"")
        for end in ends.values():
            end.settimeout(_PATIENCE)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEP_ALIVE.items():
                with contextlib.suppress(AttributeError, OSError):  # not every system has them
                    end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    @property
    def is_open(self) -> bool:
        """True while another process is connected."""
        return bool(self._ends)

    def publish(self, key: str, value: Any = None) -> None:
        """Send a value, which JSON can hold, to all processes. A key keeps its first value."""
        with self._lock:
            if key in self.found:
                return
            self.found[key] = value
            for end in self._ends.values():
                with contextlib.suppress(OSError):  # `wait` returns its process
                    end.sendall(json.dumps([key, value]).encode() + b"\n")

    def wait(self, seconds: float) -> list[int]:
        """Receive what others publish: at most for `seconds`, and only until something arrives.

        Not for two threads at a time.

        Returns:
            Indices of processes whose connections have ended; each is returned once.
        """
        ended = []
        ready = multiprocessing.connection.wait(self._ends.values(), seconds)  # type: ignore
        for process in [each for each, end in self._ends.items() if end in ready]:
            more = b""
            with contextlib.suppress(OSError):
                more = self._ends[process].recv(_LONGEST)
            *lines, self._unread[process] = (self._unread[process] + more).split(b"\n")
            try:
                for key, value in map(json.loads, lines):
                    if self.index == 0:
                        self.publish(key, value)
                    else:
                        self.found.setdefault(key, value)
            except (ValueError, TypeError):  # not sent by `publish`
                more = b""
            if not more:
                self._close(process)
                ended.append(process)
        return ended

    def close(self) -> None:
        """Close all connections."""
        for process in list(self._ends):
            self._close(process)

    def _close(self, process: int) -> None:
        with self._lock:
            self._ends.pop(process).close()
