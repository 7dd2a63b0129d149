"""All processes of a run meet before jax lets them join, so that who is missing can be named.

jax's own way of joining ends a process with `abort` when the others do not come, when two of them
have one index, or when its port is taken. Here they first meet on that same port, for one line
each: `idode_gin 1 <index> <count>` there, `go` or `error <why>` back.
"""

import contextlib
import errno
import os
import socket
import time

_HELLO = "idode_gin 1"
_LONGEST = 4096
_PATIENCE = 0.2
"""Seconds between tries, and that a signal may have to wait for Python."""
_LINGER = 2.0
"""Seconds that process 0 stays to tell those who are on their way what is wrong."""


def meet(address: str, count: int, index: int, timeout: float) -> None:
    """Returns once all of `count` processes are there.

    Args:
        address: host:port of process 0, the one that jax will use next.
        count: of processes.
        index: of this one, from 0.
        timeout: seconds.

    Raises:
        ValueError: if they are not all there in time, or do not fit together.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"The coordinator's address must be host:port, got {address!r}.")
    if count == 1:
        return
    deadline = time.monotonic() + timeout
    if index == 0:
        _gather(int(port), count, deadline, timeout)
    else:
        _arrive(host.strip("[]"), int(port), count, index, deadline, timeout)


def _gather(port: int, count: int, deadline: float, timeout: float) -> None:
    """Process 0's part: waits for the others, and tells them to go on or why not."""
    with _listener(port) as listener, contextlib.ExitStack() as stack:
        guests: dict[int, socket.socket] = {}
        problem = None
        while len(guests) < count - 1 and problem is None:
            try:
                guest, _ = listener.accept()
            except TimeoutError:
                if time.monotonic() > deadline:
                    problem = _missing(guests, count, timeout)
                continue
            stack.enter_context(guest)
            guest.settimeout(max(_PATIENCE, min(10.0, deadline - time.monotonic())))
            index, problem = _greeted(_read_line(guest) or "", guests, count)
            if index is not None or problem is not None:
                guests[-1 if index is None else index] = guest
        told = list(guests.values())
        if problem is not None:
            told += _latecomers(listener, stack, count - 1 - len(told))
        answer = "go\n" if problem is None else f"error {problem}\n"
        for guest in told:
            with contextlib.suppress(OSError):
                guest.sendall(answer.encode())
        for guest in told:  # who closes first keeps the port busy: let it be the others
            with contextlib.suppress(OSError):
                guest.settimeout(5.0)
                guest.recv(1)
    if problem is not None:
        raise ValueError(problem)


def _latecomers(
    listener: socket.socket, stack: contextlib.ExitStack, number: int
) -> list[socket.socket]:
    """Up to so many processes that arrive soon after a problem was found: to be told as well."""
    found: list[socket.socket] = []
    end = time.monotonic() + _LINGER
    while len(found) < number and time.monotonic() < end:
        with contextlib.suppress(TimeoutError):
            guest, _ = listener.accept()
            stack.enter_context(guest)
            guest.settimeout(_LINGER)
            if (_read_line(guest) or "").startswith(_HELLO):
                found.append(guest)
    return found


def _arrive(host: str, port: int, count: int, index: int, deadline: float, timeout: float) -> None:
    """The part of all others: finds process 0, says who it is, waits for the answer."""
    reason = "nobody listens there"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=_PATIENCE * 10) as host_socket:
                host_socket.settimeout(_PATIENCE)
                host_socket.sendall(f"{_HELLO} {index} {count}\n".encode())
                answer = _read_line(host_socket, deadline + 10.0)  # process 0 is to tell why
            if answer is None:
                raise ValueError(
                    f"Process {index} waited for {timeout:g} seconds with process 0, which was "
                    "still missing others. Start all of them at about the same time, or let "
                    "--initialization_timeout wait longer."
                )
            if answer == "go":
                return
            if answer.startswith("error "):
                raise ValueError(answer.removeprefix("error "))
            reason = "what listens there does not answer as process 0 of this program would"
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
        time.sleep(_PATIENCE)
    raise ValueError(
        f"Process {index} could not reach process 0 at {host}:{port} in {timeout:g} seconds: "
        f"{reason}. Did process 0 start, is --coordinator_address its address as seen from here, "
        "and is the port open? --initialization_timeout waits longer."
    )


def _listener(port: int) -> socket.socket:
    try:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        listener = socket.create_server(
            ("", port), family=family, backlog=1024, dualstack_ipv6=dual
        )
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise ValueError(
            f"Process 0 cannot listen on port {port}: {os.strerror(error.errno or 0)}. "
            + ("Is another process 0 running? Otherwise give" if taken else "Give")
            + " another port in --coordinator_address, to all processes, or set "
            "JAX_COORDINATOR_PORT where the address is detected."
        ) from error
    listener.settimeout(_PATIENCE)
    return listener


def _greeted(
    line: str, guests: dict[int, socket.socket], count: int
) -> tuple[int | None, str | None]:
    """The index that a guest gives, and what is wrong with it; (None, None) for a stranger."""
    if not line.startswith("idode_gin "):
        return None, None
    try:
        name, version, index, theirs = line.split()
        given, expected = int(index), int(theirs)
    except ValueError:
        return None, None
    if f"{name} {version}" != _HELLO:
        return None, "The processes run different versions of idode_gin. Install one everywhere."
    if expected != count:
        return None, (
            f"Process {given} was told that there are {expected} processes, process 0 that there "
            f"are {count}. Give all of them one --process_count."
        )
    if given in guests or given == 0:
        return None, (
            f"Two processes have index {given}. Give each its own --process_index, 0 to "
            f"{count - 1}."
        )
    return given, None


def _missing(guests: dict[int, socket.socket], count: int, timeout: float) -> str:
    absent = [str(each) for each in range(1, count) if each not in guests]
    shown = ", ".join(absent[:8]) + (f" and {len(absent) - 8} more" if absent[8:] else "")
    return (
        f"Of {count} processes, {shown} did not reach process 0 in {timeout:g} seconds. Were they "
        "started, with the address of process 0 as they see it, and is its port open? "
        "--initialization_timeout waits longer."
    )


def _read_line(connection: socket.socket, deadline: float | None = None) -> str | None:
    """One line without its end; "" if the connection ends before it does.

    None if nothing comes by the deadline; without one, in one timeout of the connection.
    """
    read = b""
    while not read.endswith(b"\n") and len(read) < _LONGEST:
        try:
            more = connection.recv(1 if deadline is None else _LONGEST)
        except TimeoutError:
            if deadline is None or time.monotonic() > deadline:
                return None
            continue
        except OSError:
            return ""
        if not more:
            return ""
        read += more
    return read.decode(errors="replace").strip()
