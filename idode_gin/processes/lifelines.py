"""A connection from every process to process 0 on which nobody speaks: its end tells of a death.

The system closes the connections of a process that ends, however it ends, and gives up one to a
machine that does not answer any more. So whoever is killed is missed within seconds, where jax's
heartbeat takes minutes. Who ends in good order says so first.
"""

import contextlib
import selectors
import socket
import time
from typing import NamedTuple

_HELLO = "idode_gin lifeline"
_GOODBYE = b"goodbye\n"
_LONGEST = 256
_PATIENCE = 5.0
"""Seconds for a connection and for the line that introduces it."""
_SILENCE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Seconds, and tries, until the system gives up a machine that does not answer."""


class _Line(NamedTuple):
    process: int
    read: bytes


class Lifelines:
    """This process's ends of the connections: process 0 has one to each of the others.

    Not for two threads at a time.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._secret = ""

    def listen(self, secret: str) -> int:
        """Process 0's part: waits for whoever knows `secret`; the port that it does so at."""
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._listener = socket.create_server(
            ("", 0), family=family, backlog=1024, dualstack_ipv6=dual
        )
        self._listener.settimeout(_PATIENCE)
        self._secret = secret
        self._selector.register(self._listener, selectors.EVENT_READ)
        return self._listener.getsockname()[1]

    def connect(self, host: str, port: int, secret: str, process: int) -> None:
        """The part of all others.

        Args:
            host: of process 0.
            port: what `listen` gave there.
            secret: what it was given.
            process: index of this one.

        Raises:
            OSError: if process 0 cannot be reached.
        """
        line = socket.create_connection((host, port), timeout=_PATIENCE)
        line.sendall(f"{_HELLO} {secret} {process}\n".encode())
        self._keep(line, 0)

    def wait(self, seconds: float) -> int | None:
        """Waits, and returns the index of a process that ended without a word as soon as one does.

        Another one, if any, is the next call's to tell.
        """
        end = time.monotonic() + seconds
        while True:
            for key, _ in self._selector.select(max(0.0, end - time.monotonic())):
                if key.fileobj is self._listener:
                    self._accept()
                elif (lost := self._heard(key)) is not None:
                    return lost
            if time.monotonic() >= end:
                return None

    def close(self) -> None:
        """Says goodbye on every line."""
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            with contextlib.suppress(OSError), key.fileobj:
                if key.fileobj is not self._listener:
                    key.fileobj.sendall(_GOODBYE)
        self._selector.close()

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError, ValueError):
            line, _ = self._listener.accept()
            line.settimeout(_PATIENCE)
            said = _read_line(line).decode()
            if not said.startswith(f"{_HELLO} {self._secret} "):
                line.close()  # a stranger
                return
            self._keep(line, int(said.rpartition(" ")[2]))

    def _keep(self, line: socket.socket, process: int) -> None:
        line.setblocking(False)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _SILENCE.items():
            with contextlib.suppress(AttributeError, OSError):  # not every system has them
                line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._selector.register(line, selectors.EVENT_READ, _Line(process, b""))

    def _heard(self, key: selectors.SelectorKey) -> int | None:
        """What there is to read on a line; the process at its other end if it is lost."""
        line, known = key.fileobj, key.data
        assert isinstance(line, socket.socket)
        try:
            more = line.recv(_LONGEST)
        except BlockingIOError:
            return None
        except OSError:
            more = b""
        if more:
            self._selector.modify(line, selectors.EVENT_READ, known._replace(read=more))
            return None
        self._selector.unregister(line)
        line.close()
        return None if known.read.endswith(_GOODBYE) else known.process


def _read_line(line: socket.socket) -> bytes:
    read = b""
    while not read.endswith(b"\n") and len(read) < _LONGEST and (more := line.recv(1)):
        read += more
    return read.strip()
