"""Joining the processes of one run, and jax's view of them."""

import collections
import functools
import itertools
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from idode_gin.processes import failures, jax_internals, meeting
from idode_gin.processes.places import Place

_MEETINGS: dict[str, Iterator[int]] = collections.defaultdict(itertools.count)
_CONNECTED = itertools.count()
_A_DAY = 24 * 3600


def join(place: Place, timeout: int) -> None:
    """Wait for the other processes and let jax connect to them.

    From then on a failure of another process ends this one, until `failures.until_done` is left.

    Raises:
        ValueError: if they are not all there after `timeout` seconds, or do not fit together.
    """
    import jax

    address = place.coordinator_address
    if connections := meeting.meet(address, place.count, place.index, timeout):
        failures.watch(connections)
    if "cpu" in (getattr(jax.config, "jax_platforms", None) or ""):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address=address,
        num_processes=place.count,
        process_id=place.index,
        # Unlike None, an empty list keeps jax from choosing devices.
        local_device_ids=list(place.local_device_ids),
        initialization_timeout=timeout,
        **_bind_address(address) if place.index == 0 else {},
    )
    # jax handles SIGTERM in C++ now, where a second one has no effect: set Python's handler again.
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _bind_address(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    found = meeting.bind_address(host)
    shown = f"[{found}]" if ":" in found else found
    return {"coordinator_bind_address": f"{shown}:{port}"} if found else {}


def connect() -> None:
    """Connect processes that only jax has connected; all of them must call this."""
    store = client()
    if store is None or failures.is_watching():
        return
    host = jax_internals.state().coordinator_address.rpartition(":")[0]
    key = f"idode_gin/port/{next(_CONNECTED)}"
    if index() == 0:
        listener = meeting.listen(meeting.bind_address(host), 0)
        secret = secrets.token_hex()
        store.key_value_set(key, f"{listener.getsockname()[1]} {secret}")
        failures.watch(meeting.gather(listener, count(), _A_DAY, secret.encode()))
    else:
        port, secret = wait_for(store, key).split()
        failures.watch(meeting.reach(host, int(port), count(), index(), _A_DAY, secret.encode()))


def client() -> Any:
    """Return jax's key-value store that all processes share; None if there is one process."""
    if "jax" not in sys.modules:
        return None
    state = jax_internals.state()
    return state.client if (state.num_processes or 1) > 1 else None


def index() -> int:
    """Return the index of this process, 0 if there are no others; starts no devices."""
    return 0 if client() is None else jax_internals.state().process_id


def count() -> int:
    """Return the number of processes; starts no devices."""
    return 1 if client() is None else jax_internals.state().num_processes


def wait_for(store: Any, key: str) -> str:
    """Return the value of a key of `client()`, once a process has set it."""
    while True:
        try:
            return store.blocking_key_value_get(key, 1000)
        except Exception as error:  # a short wait, so that Python handles signals in between
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def wait_for_all(what: str) -> None:
    """Wait until every process has done `what`, for up to a day.

    Otherwise they would wait in a collective, which fails on CPUs after 30 seconds. Devices that
    know of each other without jax's store, as those of a TPU pod may, do so there.
    """
    if (store := client()) is not None:
        store.wait_at_barrier(f"idode_gin/{what}/{next(_MEETINGS[what])}", _A_DAY * 1000)


def together(jitted: Any) -> Any:
    """Return a jitted function that no process runs before all have compiled it.

    A process that finds it in the compilation cache, or is faster, would otherwise wait for the
    others in its first collective, which fails on CPUs after 30 seconds. A single process gets
    `jitted` itself.
    """
    if count() == 1:
        return jitted
    compiled: list[Any] = []

    @functools.wraps(jitted)
    def run(*arguments: Any) -> Any:
        import jax

        if any(isinstance(each, jax.core.Tracer) for each in jax.tree.leaves(arguments)):
            return jitted(*arguments)  # only shapes are wanted
        if not compiled:
            compiled.append(jitted.lower(*arguments).compile())
            wait_for_all("compiled")
        return compiled[0](*arguments)

    return run
