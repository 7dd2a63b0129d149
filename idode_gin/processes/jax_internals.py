"""The private names of jax that are used here: there are no public ones.

orbax reaches jax's key-value store in the same way.
"""

from collections.abc import Sequence
from typing import Any


def state() -> Any:
    """Return what `jax.distributed.initialize` has set.

    Its attributes: `client` (the key-value store), `num_processes`, `process_id`,
    `coordinator_address`. `jax.process_index()` would start the devices.
    """
    from jax._src import distributed

    return distributed.global_state


def detect(
    address: str | None, count: int | None, index: int | None, ids: Any, timeout: int
) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    """Return the arguments, with None replaced by what SLURM, Open MPI, a TPU pod or k8s give.

    `jax.distributed.initialize` calls it in the same way.
    """
    from jax._src import clusters

    detected = clusters.ClusterEnv.auto_detect_unset_distributed_params
    return detected(address, count, index, ids, None, timeout)
