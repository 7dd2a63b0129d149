"""Where arrays live: the device mesh, and which axis of what lies along it."""

import dataclasses
from collections.abc import Callable
from typing import Any, final

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from idode_gin import checks, types

DATA_AXIS = "data"


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class PjitPartitioner:
    """Data parallelism: batches split over all devices, the state on every one of them.

    Args:
        num_partitions: devices that share one copy of the model.

    Raises:
        ValueError: if `num_partitions` is not 1; a model on several devices is not supported.
    """

    num_partitions: int = 1

    def __post_init__(self) -> None:
        if self.num_partitions != 1:
            raise ValueError(
                "`num_partitions` must be 1: every device holds the whole model and the batch is "
                f"split over all of them. Got num_partitions={self.num_partitions}. To save "
                "memory, raise Trainer.num_microbatches instead."
            )

    @property
    def mesh(self) -> Mesh:
        """All devices of all processes, along one axis."""
        # Not jax.make_mesh: its axes are explicit since jax 0.10, and flax's convolutions raise.
        return Mesh(np.array(jax.devices()).reshape(-1), (DATA_AXIS,))

    @property
    def batch_sharding(self) -> NamedSharding:
        """Of every array of a batch: split along its first axis."""
        return NamedSharding(self.mesh, PartitionSpec(DATA_AXIS))

    @property
    def replicated(self) -> NamedSharding:
        """Of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def per_device(self, fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """`fn(params, batch)` on every device's own rows of the batch, as if it were alone.

        A loop in it stops when that device's images are done. `params` are whole everywhere;
        leaves of the batch and of the result are `[B, ...]`.
        """
        rows = PartitionSpec(DATA_AXIS)
        return _shard_map(fn, self.mesh, (PartitionSpec(), rows), rows)

    def state_sharding(self, abstract_state: Any) -> Any:
        """One sharding per leaf of the state, in a tree of the same structure."""
        return jax.tree.map(lambda _: self.replicated, abstract_state)

    def check_batch_size(self, name: str, batch_size: int, num_microbatches: int = 1) -> None:
        """Raises ValueError, naming the next valid size, unless every device gets equal parts."""
        checks.check_positive(name, batch_size)
        devices = self.mesh.size
        unit_name = "number of devices"
        if num_microbatches > 1:
            unit_name += " * num_microbatches"
        checks.check_multiple(name, batch_size, unit_name, devices * num_microbatches)

    def local_rows(self, batch_size: int) -> np.ndarray:
        """Places in the global batch that this process's devices hold: integers `[n]`, rising."""
        places = self.batch_sharding.addressable_devices_indices_map((batch_size,)).values()
        held = [np.arange(batch_size)[rows] for (rows,) in places]  # type: ignore[misc]
        return np.unique(np.concatenate(held))

    def put_batch(self, batch: types.Batch, batch_size: int) -> types.Batch:
        """Global arrays of a batch, of which each process brings its own devices' rows.

        Args:
            batch: NumPy arrays of the rows `local_rows(batch_size)`.
            batch_size: of the global batch.
        """
        sharding = self.batch_sharding

        def put(array: np.ndarray) -> jax.Array:
            shape = (batch_size, *array.shape[1:])
            return jax.make_array_from_process_local_data(sharding, array, shape)

        return {name: put(np.asarray(array)) for name, array in batch.items()}


def _shard_map(fn: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any) -> Any:
    try:
        from jax import shard_map

        unchecked = {"check_vma": False}
    except ImportError:  # jax before 0.7
        from jax.experimental.shard_map import shard_map  # type: ignore[no-redef]

        unchecked = {"check_rep": False}
    # Loops whose length differs from device to device are not what the check understands.
    mapped: Any = shard_map
    return mapped(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **unchecked)


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of `tree` with the given shardings: what a restore is aimed at."""
    return jax.tree.map(
        lambda each, sharding: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=sharding),
        tree,
        shardings,
    )
