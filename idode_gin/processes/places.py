"""Finding out which of several processes this one is: from flags, or from the cluster."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence

from idode_gin.processes import jax_internals

ALL = "all"
"""In place of device numbers: every device that the process can see."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """This process among the others.

    Attributes:
        coordinator_address: host:port of process 0.
        count: number of processes.
        index: of this process, from 0.
        local_device_ids: numbers of the GPUs it uses, among those it can see; empty for all.
    """

    coordinator_address: str
    count: int
    index: int
    local_device_ids: tuple[int, ...] = ()


def find_place(
    coordinator_address: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    local_device_ids: Sequence[str] | None = None,
    *,
    timeout: int = 300,
) -> Place:
    """Return what is given, completed by what SLURM, Open MPI, a TPU pod or Kubernetes give.

    If no devices are given, a process that is alone on its machine, or that was given a GPU of its
    own, uses all that it can see; otherwise the one with its number among the processes there.

    Raises:
        ValueError: if something is neither given nor detected, or numbers do not fit together.
    """
    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count, index, ids = process_count, process_index, _device_ids(local_device_ids)
    detected_ids: Sequence[int] | None = ()
    if None in (address, count, index, ids):
        try:
            address, count, index, detected_ids = jax_internals.detect(
                address, count, index, ids, timeout
            )
        except (RuntimeError, LookupError, ValueError, AttributeError) as error:
            reason = f"{error.args[0]} is not set" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"The other processes could not be detected. {reason}. Unset the variables that a "
                "launcher has left, or give --coordinator_address, --process_count, "
                "--process_index and --local_device_ids."
            ) from error
    if address is None or count is None or index is None:
        given = {"coordinator_address": address, "process_count": count, "process_index": index}
        missing = ", ".join(f"--{flag}" for flag, value in given.items() if value is None)
        if "OMPI_COMM_WORLD_RANK" in os.environ:
            raise ValueError(
                f"--multiprocess_gpu needs {missing} under this version of Open MPI, which does "
                "not set OMPI_MCA_orte_hnp_uri. Give --coordinator_address=HOST:PORT, "
                "--process_count=$OMPI_COMM_WORLD_SIZE --process_index=$OMPI_COMM_WORLD_RANK "
                "--local_device_ids=$OMPI_COMM_WORLD_LOCAL_RANK, or 'all' for processes that see "
                "one device each; the shell of each process must expand them."
            )
        raise ValueError(
            f"--multiprocess_gpu needs {missing} here: no SLURM, Open MPI, TPU pod or Kubernetes "
            "that gives them was detected. (SLURM sets them for tasks that `srun` starts, not for "
            "the batch script itself.)"
        )
    if count < 1 or not 0 <= index < count:
        raise ValueError(
            f"--process_index must be 0 to {count - 1}, as --process_count is {count}; got {index}."
        )
    if ids is None:
        ids = () if _has_devices_of_its_own(os.environ) else tuple(detected_ids or ())
    return Place(coordinator_address=address, count=count, index=index, local_device_ids=ids)


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
    """Return True if the launcher gave this process devices that no other process sees."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("ROCR_VISIBLE_DEVICES", ","))
    return "," not in visible or _processes_on_this_machine(environment) == 1


def _processes_on_this_machine(environment: Mapping[str, str]) -> int | None:
    """Return the number that SLURM or Open MPI gives; None if neither does.

    SLURM lists tasks by node: `4(x2),3` is four, four and three. Under `mpirun` in a SLURM job
    these are Open MPI's daemons, not the processes.
    """
    with contextlib.suppress(KeyError, ValueError):
        return int(environment["OMPI_COMM_WORLD_LOCAL_SIZE"])
    counts: list[int] = []
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks):
        counts += [int(number)] * int(times or 1)
    with contextlib.suppress(KeyError, ValueError, IndexError):
        return counts[int(environment["SLURM_NODEID"])]
    return None
