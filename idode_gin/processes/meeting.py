"""Connecting the processes of a run before jax does: missing and doubled ones are named.

All connect to process 0 at the port that jax's service uses next, and stay connected.

jax's own way, measured with jax 0.10.2: if a process is missing, or if two have one index, all
abort after `initialization_timeout`, with exit code 134 and a C++ stack trace that names no
process; processes that were given different counts are accepted.

There is no authentication, as there is none in jax's service: a program written to speak this
protocol can take part. Other programs that connect are refused, and delay nothing.
"""

import contextlib
import errno
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Iterator

from idode_gin.processes.connections import Connections

_GREETING = re.compile(rb"idode_gin 2 (\d{1,9}) (\d{1,9})\n")
"""Of a process, with its index and its count; the answer is `go` or `error <why>`."""
_LONGEST = 4096
_PAUSE = 0.2
"""Seconds between attempts to reach process 0."""
_LINGER = 2.0
"""Seconds that process 0 stays to report an error to processes that come later."""
_MARGIN = 10.0
"""Seconds that other processes wait longer than process 0, which names the missing."""


def meet(address: str, count: int, index: int, timeout: float) -> Connections | None:
    """Connect this process to the others; return None if there are none.

    Args:
        address: host:port of process 0.
        count: number of processes.
        index: of this process, from 0.
        timeout: in seconds.

    Raises:
        ValueError: if they do not all come in time, or do not fit together.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"The coordinator's address must be host:port, got {address!r}.")
    if count == 1:
        return None
    if index == 0:
        return gather(listen(bind_address(host), int(port)), count, timeout)
    return reach(host, int(port), count, index, timeout)


def bind_address(host: str) -> str:
    """Return the address of this machine at which process 0 listens; "" for all interfaces.

    It is the first one that belongs to JAX_COORDINATOR_BIND_ADDRESS or else to `host`. There is
    none if `host` belongs to a gateway, or if it is a machine's name that means the loopback
    interface on that machine, as in Debian's /etc/hosts.
    """
    given = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "").rpartition(":")[0]
    host = (given or host).strip("[]")
    with contextlib.suppress(OSError):
        found = [str(each[4][0]) for each in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)]
        for address in found:
            is_loopback = address == "::1" or address.startswith("127.")
            if not is_loopback or host in ("localhost", *found):
                with contextlib.suppress(OSError), _listen(address, 0):
                    return address
    return ""


def listen(address: str, port: int) -> socket.socket:
    """Return a socket that listens at an address of `bind_address`.

    Raises:
        ValueError: if the port cannot be used.
    """
    try:
        return _listen(address, port)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise ValueError(
            f"Process 0 cannot listen on port {port}: {os.strerror(error.errno or 0)}. "
            + ("Is another process 0 running? Otherwise give" if taken else "Give")
            + " another port in --coordinator_address, to all processes, or set "
            "JAX_COORDINATOR_PORT where the address is detected."
        ) from error


def _listen(address: str, port: int) -> socket.socket:
    dual = not address and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual or ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, backlog=1024, dualstack_ipv6=dual)


def gather(listener: socket.socket, count: int, timeout: float) -> Connections:
    """Wait, as process 0, for all others; report to all of them what is wrong, if anything is.

    Args:
        listener: where they connect; closed afterwards.
        count: number of processes.
        timeout: in seconds.

    Raises:
        ValueError: if they do not all come in time, or do not fit together.
    """
    ends: dict[int, socket.socket] = {}
    refused: list[socket.socket] = []
    problem, deadline = None, time.monotonic() + timeout
    arrivals: queue.SimpleQueue = queue.SimpleQueue()
    with _accepting(listener, arrivals):
        while len(ends) + len(refused) < count - 1:
            try:
                end, index, expected = arrivals.get(timeout=max(0.0, deadline - time.monotonic()))
                found = _problem(index, expected, ends, count)
                if found is None:
                    ends[index] = end
                    continue
                refused.append(end)
            except queue.Empty:
                if problem is not None:
                    break
                found = _missing(ends, count, timeout)
            if problem is None:
                problem, deadline = found, time.monotonic() + _LINGER
    for end in (*ends.values(), *refused):
        with contextlib.suppress(OSError):
            end.sendall(b"go\n" if problem is None else f"error {problem}\n".encode())
        if problem is not None:
            end.close()
    if problem is not None:
        raise ValueError(problem)
    return Connections(0, count, ends)


@contextlib.contextmanager
def _accepting(listener: socket.socket, arrivals: queue.SimpleQueue) -> Iterator[None]:
    """Context in which connections that begin with a greeting are put into `arrivals`.

    Each is read in a thread of its own, so that a slow one delays no other.
    """
    is_over = threading.Event()

    def accept() -> None:
        while not is_over.is_set():
            with contextlib.suppress(OSError):
                end, _ = listener.accept()
                threading.Thread(target=read, args=(end,), daemon=True).start()

    def read(end: socket.socket) -> None:
        said = _GREETING.fullmatch(_read_line(end, time.monotonic() + _MARGIN))
        if said and 0 < int(said[1]) < int(said[2]):
            arrivals.put((end, int(said[1]), int(said[2])))
        else:
            end.close()

    accepting = threading.Thread(target=accept, daemon=True)
    with listener:
        listener.settimeout(_PAUSE)
        accepting.start()
        try:
            yield
        finally:
            is_over.set()
            accepting.join()


def _problem(index: int, expected: int, ends: dict[int, socket.socket], count: int) -> str | None:
    if expected != count:
        return (
            f"Process {index} was started as one of {expected} processes, process 0 as one of "
            f"{count}. Give all of them one --process_count."
        )
    if index in ends:
        return (
            f"Two processes have index {index}. Give each its own --process_index, 0 to "
            f"{count - 1}."
        )
    return None


def _missing(ends: dict[int, socket.socket], count: int, timeout: float) -> str:
    absent = [str(each) for each in range(1, count) if each not in ends]
    shown = ", ".join(absent[:8]) + (f" and {len(absent) - 8} more" if absent[8:] else "")
    return (
        f"Of {count} processes, {shown} did not reach process 0 in {timeout:g} seconds. Were they "
        "started, with the address of process 0 as they see it, and is its port open? "
        "--initialization_timeout waits longer."
    )


def reach(host: str, port: int, count: int, index: int, timeout: float) -> Connections:
    """Connect, as process `index`, to process 0, and wait until all others have come.

    Raises:
        ValueError: with what process 0 reports, or if it cannot be reached in time.
    """
    deadline = time.monotonic() + timeout
    reason = "no program listens there"
    while time.monotonic() < deadline:
        try:
            end = socket.create_connection((host.strip("[]"), port), timeout=2.0)
            end.sendall(f"idode_gin 2 {index} {count}\n".encode())
            answer = _read_line(end, deadline + _MARGIN).decode(errors="replace").strip()
            if answer == "go":
                return Connections(index, count, {0: end})
            end.close()
            if time.monotonic() > deadline + _MARGIN:
                raise ValueError(
                    f"Process {index} waited for {timeout:g} seconds with process 0, which was "
                    "still missing others. Start all of them at about the same time, or let "
                    "--initialization_timeout wait longer."
                )
            if answer.startswith("error "):
                raise ValueError(answer.removeprefix("error "))
            reason = "what listens there does not answer as process 0 of this program would"
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
        time.sleep(_PAUSE)
    raise ValueError(
        f"Process {index} could not reach process 0 at {host}:{port} in {timeout:g} seconds: "
        f"{reason}. Did process 0 start, is --coordinator_address its address as seen from here, "
        "and is the port open? --initialization_timeout waits longer."
    )


def _read_line(end: socket.socket, deadline: float) -> bytes:
    """Return the next line, or its beginning where the connection or the time ends before it."""
    read = b""
    with contextlib.suppress(OSError):
        while not read.endswith(b"\n") and len(read) < _LONGEST:
            end.settimeout(max(0.001, deadline - time.monotonic()))
            more = end.recv(1)  # what follows the line is left for `Connections`
            if not more or time.monotonic() > deadline:
                break
            read += more
    return read
