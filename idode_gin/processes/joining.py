"""Joining the processes of one run: found out or given, met, and handed to jax."""

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from idode_gin.processes import rendezvous

ALL = "all"
"""In place of device numbers: every device that the process can see."""

_COMPILED = itertools.count()
_A_DAY = 24 * 3600 * 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """This process among the others.

    Attributes:
        coordinator_address: host:port of process 0.
        count: how many processes there are.
        index: which one this is, from 0.
        local_device_ids: numbers of the GPUs it uses, of those it can see; empty for all of them.
    """

    coordinator_address: str
    count: int
    index: int
    local_device_ids: tuple[int, ...] = ()


def join(place: Place, timeout: int) -> None:
    """Waits for the other processes and lets jax connect to them.

    Raises:
        ValueError: if they are not all there after `timeout` seconds, or do not fit together.
    """
    import jax

    rendezvous.meet(place.coordinator_address, place.count, place.index, timeout)
    if "cpu" in (getattr(jax.config, "jax_platforms", None) or ""):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address=place.coordinator_address,
        num_processes=place.count,
        process_id=place.index,
        # Empty, unlike None, is not for jax to fill in.
        local_device_ids=list(place.local_device_ids),
        initialization_timeout=timeout,
    )
    _take_signals_back()


def _take_signals_back() -> None:
    """jax takes SIGTERM for a service of its own, which knows of no second one."""
    handler = signal.getsignal(signal.SIGTERM)  # as Python remembers it
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def client() -> Any:
    """jax's connection to the other processes, a key-value store; None where there are none."""
    if "jax" not in sys.modules:
        return None
    from jax._src import distributed  # orbax's way to it as well: there is no public one

    state = distributed.global_state
    return state.client if (state.num_processes or 1) > 1 else None


def index() -> int:
    """Of this process, 0 where there are no others. Unlike jax's own, it starts no devices."""
    if client() is None:
        return 0
    from jax._src import distributed

    return distributed.global_state.process_id


def host() -> str:
    """Where process 0 is, as this process was told."""
    from jax._src import distributed

    return (distributed.global_state.coordinator_address or "").rpartition(":")[0].strip("[]")


def count() -> int:
    """How many processes there are; 1 where there are no others."""
    if client() is None:
        return 1
    from jax._src import distributed

    return distributed.global_state.num_processes or 1


def wait_for(store: Any, key: str) -> str:
    """The value of a key of `client()`, once a process has set it."""
    while True:
        try:
            return store.blocking_key_value_get(key, 1000)
        except Exception as error:  # a short wait, so that Python hears of signals in between
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def together(jitted: Any) -> Any:
    """A jitted function that no process runs before all have compiled it; of one process, itself.

    Who finds it in the compilation cache, or is faster, would otherwise wait for the others inside
    the function's first collective, where the CPU's give up after 30 seconds.
    """
    if count() == 1:
        return jitted
    compiled: list[Any] = []

    @functools.wraps(jitted)
    def run(*arguments: Any) -> Any:
        import jax

        if any(isinstance(each, jax.core.Tracer) for each in jax.tree.leaves(arguments)):
            return jitted(*arguments)  # only its shapes are asked for
        if not compiled:
            compiled.append(jitted.lower(*arguments).compile())
            client().wait_at_barrier(f"idode_gin/compiled/{next(_COMPILED)}", _A_DAY)
        return compiled[0](*arguments)

    return run


def find_place(
    coordinator_address: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    local_device_ids: Sequence[str] | None = None,
    *,
    timeout: int = 300,
) -> Place:
    """What is given, and for the rest what jax finds out from SLURM, Open MPI, a TPU pod or k8s.

    Devices that are not given are all that the process can see if it is alone on its machine, or
    was given a GPU of its own; otherwise the one whose number is its own among the processes there.

    Raises:
        ValueError: if something is neither given nor found, or numbers do not fit together.
    """
    given = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    ids = _device_ids(local_device_ids)
    address, count, own, found_ids = _detect(given, process_count, process_index, ids, timeout)
    missing = [
        flag
        for flag, value in (
            ("--coordinator_address", address),
            ("--process_count", count),
            ("--process_index", own),
        )
        if value is None
    ]
    if address is None or count is None or own is None:
        raise ValueError(
            f"--multiprocess_gpu needs {', '.join(missing)} here: no SLURM, Open MPI, TPU pod or "
            "Kubernetes was detected that tells. (SLURM tells tasks that `srun` starts, not the "
            "batch script itself.)"
        )
    if count < 1 or not 0 <= own < count:
        raise ValueError(
            f"--process_index must be 0 to {count - 1}, as --process_count is {count}; got {own}."
        )
    if ids is None:
        ids = () if not found_ids or _has_devices_of_its_own(os.environ) else tuple(found_ids)
    return Place(coordinator_address=address, count=count, index=own, local_device_ids=ids)


def _detect(
    address: str | None,
    count: int | None,
    own: int | None,
    ids: tuple[int, ...] | None,
    timeout: int,
) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    if None not in (address, count, own, ids):
        return address, count, own, ids
    # Not public, but the one place that knows; `jax.distributed.initialize` calls it as we do.
    from jax._src import clusters

    try:
        return clusters.ClusterEnv.auto_detect_unset_distributed_params(
            address, count, own, ids, None, timeout
        )
    except RuntimeError as error:
        raise ValueError(f"The other processes could not be found out. {error}") from error


def _device_ids(given: Sequence[str] | None) -> tuple[int, ...] | None:
    if given is None:
        given = [each for each in os.environ.get("JAX_LOCAL_DEVICE_IDS", "").split(",") if each]
        if not given:
            return None
    if list(given) == [ALL]:
        return ()
    if not given or not all(each.strip().isdigit() for each in given):
        raise ValueError(
            f"--local_device_ids must be numbers, such as 0,1, or {ALL!r}; got {','.join(given)!r}."
        )
    return tuple(int(each) for each in given)


def _has_devices_of_its_own(environment: Mapping[str, str]) -> bool:
    """Whether the launcher gave this process devices that no other process sees."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("ROCR_VISIBLE_DEVICES"))
    if visible is not None and len(visible.split(",")) == 1:
        return True
    return _processes_on_this_machine(environment) == 1


def _processes_on_this_machine(environment: Mapping[str, str]) -> int | None:
    """As SLURM or Open MPI says; None if neither does.

    SLURM lists tasks by node: `4(x2),3` is four, four and three.
    """
    counts: list[int] = []
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks):
        counts += [int(number)] * int(times or 1)
    with contextlib.suppress(KeyError, ValueError, IndexError):
        return counts[int(environment["SLURM_NODEID"])]
    with contextlib.suppress(KeyError, ValueError):
        return int(environment["OMPI_COMM_WORLD_LOCAL_SIZE"])
    return None
