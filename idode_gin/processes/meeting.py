"""Connecting the processes of a run before jax does: missing and doubled ones are named.

All connect to process 0 at the port that jax's service uses next, and stay connected.

jax's own way, measured with jax 0.10.2: if a process is missing, or if two have one index, all
abort after `initialization_timeout`, with exit code 134 and a C++ stack trace that names no
process; processes that were given different counts are accepted.

A greeting is signed with a secret that the processes of one run share, see `shared_secret`.
Whoever connects without it is refused, changes nothing and delays nothing. This keeps out stray
programs, and other runs that were given the same port. It does not keep out those who can read the
environment of the job or the network between its machines, and jax's own service, which starts
afterwards, has no authentication at all.
"""

import contextlib
import errno
import hmac
import multiprocessing.connection
import os
import re
import socket
import time

from idode_gin.processes.connections import Connections

_GREETING = re.compile(rb"idode_gin 4 (\d{1,9}) (\d{1,9}) [0-9a-f]{64}\n")
"""Of a process, with its index, its count and its signature."""
_SECRET = "IDODE_GIN_SECRET"
_JOBS = ("PMIX_NAMESPACE", "SLURM_JOB_ID")
"""Names of the job by its launcher. Open MPI may start processes where SLURM's is not set."""
_MET = "met"
"""Published by process 0 as its answer: None, or what is wrong."""
_LONGEST = 128
_MOST_UNREAD = 256
"""Connections without a greeting; of more, the oldest is closed."""
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
        return gather(listen(bind_address(host), int(port)), count, timeout, shared_secret())
    return reach(host, int(port), count, index, timeout, shared_secret())


def shared_secret() -> bytes:
    """Return IDODE_GIN_SECRET, or what names the job of SLURM or Open MPI.

    Jobs of a cluster have different names, but anyone may know them. Where there is neither, the
    secret is empty, and any run with the same address can take part. (The address is no part of
    it: each process has it as it sees it.)
    """
    return next(filter(None, map(os.environ.get, (_SECRET, *_JOBS))), "").encode()


def _greeting(index: int, count: int, secret: bytes) -> bytes:
    text = f"idode_gin 4 {index} {count} ".encode()
    return text + hmac.digest(secret, text, "sha256").hex().encode() + b"\n"


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


def gather(listener: socket.socket, count: int, timeout: float, secret: bytes) -> Connections:
    """Wait, as process 0, for all others; report to all of them what is wrong, if anything is.

    Args:
        listener: where they connect; closed afterwards.
        count: number of processes.
        timeout: in seconds.
        secret: shared by the processes of this run.

    Raises:
        ValueError: if they do not all come in time, or do not fit together.
    """
    ends: dict[int, socket.socket] = {}
    refused: list[socket.socket] = []
    unread: dict[socket.socket, bytes] = {}
    problem, deadline = None, time.monotonic() + timeout
    while len(ends) + len(refused) < count - 1:
        left = deadline - time.monotonic()
        found = _missing(ends, count, timeout) if left <= 0 else None
        if found and problem:
            break
        greeted = _greetings(listener, unread, max(left, 0.0), secret)
        for index in [each for each, end in ends.items() if _is_closed(end)]:
            ends.pop(index).close()  # killed: it may be started again, and is awaited
        for end, index, expected in greeted:
            if refusal := _refusal(index, expected, ends, count):
                found = found or refusal
                refused.append(end)
            else:
                ends[index] = end
        if found and not problem:
            problem, deadline = found, time.monotonic() + _LINGER
    for each in (listener, *unread):
        each.close()
    # By any number: one that is refused may have the index of another.
    connections = Connections(0, count, dict(enumerate(refused, count)) | ends)
    connections.publish(_MET, problem)
    if problem:
        connections.close()
        raise ValueError(problem)
    return connections


def _greetings(
    listener: socket.socket, unread: dict[socket.socket, bytes], seconds: float, secret: bytes
) -> list[tuple[socket.socket, int, int]]:
    """Wait for `seconds` at most, and return new connections of processes, with index and count.

    `unread` keeps connections that have sent less than a greeting. Those that send something else
    are closed.
    """
    found = []
    ready = multiprocessing.connection.wait([listener, *unread], seconds)  # type: ignore
    for end in [each for each in unread if each in ready]:
        more = b""
        with contextlib.suppress(OSError):
            more = end.recv(_LONGEST)
        said = unread.pop(end) + more
        greeting = _GREETING.fullmatch(said)
        index, count = map(int, greeting.groups()) if greeting else (0, 0)
        if 0 < index < count and hmac.compare_digest(said, _greeting(index, count, secret)):
            found.append((end, index, count))
        elif more and len(said) < _LONGEST and b"\n" not in said:
            unread[end] = said
        else:
            end.close()
    if listener in ready:
        with contextlib.suppress(OSError):
            unread[listener.accept()[0]] = b""
    if len(unread) > _MOST_UNREAD:
        oldest = next(iter(unread))
        del unread[oldest]
        oldest.close()
    return found


def _is_closed(end: socket.socket) -> bool:
    """Return whether the process at the other end has closed the connection, or died."""
    try:
        return not end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _refusal(index: int, expected: int, ends: dict[int, socket.socket], count: int) -> str | None:
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


def reach(
    host: str, port: int, count: int, index: int, timeout: float, secret: bytes
) -> Connections:
    """Connect, as process `index`, to process 0, and wait until all others have come.

    Raises:
        ValueError: with what process 0 reports, or if it cannot be reached in time.
    """
    deadline = time.monotonic() + timeout
    reason = "no program listens there"
    while time.monotonic() < deadline:
        try:
            end = socket.create_connection((host.strip("[]"), port), timeout=2.0)
            end.sendall(_greeting(index, count, secret))
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            time.sleep(_PAUSE)
            continue
        connections = Connections(index, count, {0: end})
        while connections.is_open and _MET not in connections.found:
            if time.monotonic() > deadline + _MARGIN:
                connections.close()
                raise ValueError(
                    f"Process {index} waited for {timeout:g} seconds with process 0, which was "
                    "still missing others. Start all of them at about the same time, or let "
                    "--initialization_timeout wait longer."
                )
            connections.wait(_PAUSE)
        if _MET in connections.found:
            if problem := connections.found[_MET]:
                connections.close()
                raise ValueError(problem)
            return connections
        reason = (
            "what listens there does not answer as process 0 of this run would, with the same "
            f"{_SECRET}, or without one the same job of SLURM or Open MPI"
        )
        time.sleep(_PAUSE)
    raise ValueError(
        f"Process {index} could not reach process 0 at {host}:{port} in {timeout:g} seconds: "
        f"{reason}. Did process 0 start, is --coordinator_address its address as seen from here, "
        "and is the port open? --initialization_timeout waits longer."
    )
