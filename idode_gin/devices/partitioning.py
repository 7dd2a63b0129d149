"""Placement of arrays: shardings of batches, parameters and training state over a mesh."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, final

import jax
import numpy as np
from absl import logging
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from idode_gin import checks, types
from idode_gin.devices import axis_rules
from idode_gin.devices import mesh as mesh_lib
from idode_gin.devices.mesh import MeshShape
from idode_gin.reports import fingerprints

BATCH_AXES = (mesh_lib.DATA, mesh_lib.FSDP)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class PjitPartitioner:
    """Shard batches, parameters and training state over a mesh of devices. Names follow t5x.

    The mesh axes are `data`, `fsdp` and `model` (see `mesh`). A batch is split over `data` and
    `fsdp`. Parameters, their moving average and the optimizer's state are split by
    `logical_axis_rules`: by default over `fsdp` wherever a parameter divides, and inside a block
    over `model`. An array that no rule can divide is replicated.

    Args:
        num_partitions: size of `model`: devices that share the work on the same images.
        mesh_shape: devices along each axis, such as {'data': 2, 'fsdp': 4} or (2, 4, 1). -1, or
            `data` left out, takes the remaining devices. None: all devices along `data`, after
            `num_partitions`. An `AbstractMesh` is used as it is, for shapes alone.
        dcn_mesh_shape: mesh of groups of devices (slices of a pod, or processes) connected by a
            slower network, such as {'data': 2}; `mesh_shape` is then the mesh of one group. None:
            one group.
        logical_axis_rules: pairs (name of a parameter's axis, one or several mesh axes, or None)
            in order of priority; see `axis_rules.spec`. `networks.layers` defines the names.

    Raises:
        ValueError: for a mesh that does not fit the devices, or an unknown mesh axis.
    """

    num_partitions: int = 1
    mesh_shape: MeshShape | AbstractMesh = None
    dcn_mesh_shape: MeshShape = None
    logical_axis_rules: Sequence[axis_rules.Rule] = axis_rules.DEFAULT

    def __post_init__(self) -> None:
        checks.check_integer("num_partitions", self.num_partitions, at_least=1)
        axis_rules.check(self.logical_axis_rules)
        if not isinstance(self.mesh_shape, AbstractMesh):
            self._sizes(None)

    def without_devices(self) -> "PjitPartitioner":
        """Return this partitioner on a mesh whose devices need not exist, for shapes alone.

        Sizes that depend on the number of devices are 1.
        """
        if isinstance(self.mesh_shape, AbstractMesh):
            return self
        planned = mesh_lib.abstract(*self._sizes(None))
        return PjitPartitioner(mesh_shape=planned, logical_axis_rules=self.logical_axis_rules)

    @property
    def mesh(self) -> Mesh | AbstractMesh:
        """Mesh of the devices of all processes."""
        if isinstance(self.mesh_shape, AbstractMesh):
            return self.mesh_shape
        devices = tuple(jax.devices())
        return mesh_lib.of_devices(*self._sizes(len(devices)), devices)

    @property
    def shown(self) -> str:
        """Description of the mesh, such as "data=2 x fsdp=4 x model=1, 8 devices"."""
        shape = self.mesh.shape
        return f"{mesh_lib.shown(shape)}, {self.mesh.size} devices"

    def _sizes(self, devices: int | None) -> tuple[mesh_lib.Sizes, mesh_lib.Sizes]:
        assert not isinstance(self.mesh_shape, AbstractMesh)
        return mesh_lib.resolve(self.mesh_shape, self.dcn_mesh_shape, self.num_partitions, devices)

    @property
    def batch_sharding(self) -> NamedSharding:
        """Sharding of the arrays of a batch: split along the first axis."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    @property
    def batch_parts(self) -> int:
        """Number of parts that a batch is split into."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of replicated arrays."""
        return NamedSharding(self.mesh, PartitionSpec())

    def per_device(self, fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Map `fn(params, batch)` over devices, each with its own rows of the batch.

        A loop in `fn` ends when the images of its device are done, so `fn` may not contain
        collectives: `params` are replicated, and devices along `model` have rows of their own too.
        Leaves of the batch and of the result are `[B, ...]`.
        """
        rows = PartitionSpec(mesh_lib.AXES)
        return _shard_map(fn, self.mesh, (PartitionSpec(), rows), rows)

    def param_sharding(self, params: types.Params, logical_axes: Any) -> Any:
        """Return one sharding per parameter by the rules.

        Args:
            params: parameters, or their shapes.
            logical_axes: names of their axes, see `AbstractNetwork.logical_axes`.

        Raises:
            ValueError: for a rule with an unknown axis, an axis that does not divide by `model`,
                or a `model` above 1 that splits no parameter.
        """
        here, rules = self.mesh, axis_rules.check(self.logical_axis_rules)
        axis_rules.check_names(rules, logical_axes)

        def placed(path: Any, leaf: Any, names: Any) -> NamedSharding:
            axes, name = tuple(names), fingerprints.path_name(path)
            return NamedSharding(here, axis_rules.spec(axes, leaf.shape, rules, here.shape, name))

        shardings = jax.tree_util.tree_map_with_path(placed, params, logical_axes)
        self._check_use(shardings)
        return shardings

    def _check_use(self, shardings: Any) -> None:
        specs = [each.spec for each in jax.tree.leaves(shardings)]
        used = {axis for spec in specs for axis in axis_rules.axes_of(spec)}
        model, fsdp = self.mesh.shape[mesh_lib.MODEL], self.mesh.shape[mesh_lib.FSDP]
        if model > 1 and mesh_lib.MODEL not in used:
            raise ValueError(
                "`num_partitions`, the size of the mesh axis 'model', must be 1 if no rule "
                f"splits a parameter over it, got {model}: these devices would all do the same "
                "work. Name the network's axes, or use 'data' or 'fsdp'."
            )
        if fsdp > 1 and mesh_lib.FSDP not in used:
            logging.warning(
                "No rule splits a parameter over the mesh axis 'fsdp' of %d devices. They "
                "replicate all parameters, as with 'data'.",
                fsdp,
            )

    def state_sharding(self, abstract_state: Any, logical_axes: Any = None) -> Any:
        """Return one sharding per leaf of the state, in a tree of the same structure.

        Args:
            abstract_state: a state with `params`, or its shapes; leaves that mirror a parameter are
                sharded like it.
            logical_axes: names of the parameters' axes; None replicates everything.
        """
        if logical_axes is None:
            return jax.tree.map(lambda _: self.replicated, abstract_state)
        params = abstract_state.params
        shardings = self.param_sharding(params, logical_axes)
        return axis_rules.like_parameters(abstract_state, params, self.replicated, shardings)

    def as_used(self, shardings: Any) -> Any:
        """Return the shardings of parameters during computation: split over `model` only.

        Args:
            shardings: shardings of the parameters as stored.
        """

        def used(sharding: NamedSharding) -> NamedSharding:
            return NamedSharding(sharding.mesh, axis_rules.only(mesh_lib.MODEL, sharding.spec))

        return jax.tree.map(used, shardings)

    def on_gathered(self, fn: Callable[..., Any], shardings: Any) -> Callable[..., Any]:
        """Return `fn(params, *others)` for parameters as stored, gathered before they are used.

        This is `fn` itself if nothing needs gathering. The gradient reduces and scatters: a sum
        over devices, of which each keeps the part that it stores, once per microbatch.

        Args:
            fn: function of the parameters as they are used.
            shardings: shardings of the parameters as stored.
        """
        whole = self.as_used(shardings)
        if jax.tree.leaves(whole) == jax.tree.leaves(shardings):
            return fn

        @jax.custom_vjp
        def gather(params: types.Params) -> types.Params:
            return jax.lax.with_sharding_constraint(params, whole)

        def backward(_: None, grads: types.Params) -> tuple[types.Params]:
            return (jax.lax.with_sharding_constraint(grads, shardings),)

        gather.defvjp(lambda params: (gather(params), None), backward)
        return lambda params, *others: fn(gather(params), *others)

    def whole(self, tree: Any) -> Any:
        """Return the arrays of `tree` replicated. Every process must call this."""
        if all(each.is_fully_replicated for each in jax.tree.leaves(tree)):
            return tree
        return jax.jit(lambda each: each, out_shardings=self.replicated)(tree)

    def check_batch_size(self, name: str, batch_size: int, num_microbatches: int = 1) -> None:
        """Check that a batch splits into equal parts.

        Args:
            name: name of the size in the error message.
            batch_size: size of the global batch.
            num_microbatches: number of microbatches.

        Raises:
            ValueError: if it does not; names the next valid size.
        """
        checks.check_count(name, batch_size)
        sizes = self.mesh.shape
        used = (axis for axis in BATCH_AXES if sizes[axis] > 1 or axis == mesh_lib.DATA)
        parts = {axis: sizes[axis] for axis in used}
        if num_microbatches > 1:
            parts["num_microbatches"] = num_microbatches
        unit = math.prod(parts.values())
        checks.check_multiple(name, batch_size, " * ".join(parts), unit)

    def rounded_up(self, batch_size: int, solve_size: int) -> int:
        """Return the smallest size from `batch_size` that gives all devices whole solves.

        A smaller batch takes as long: a solve of fewer than `solve_size` images is padded.
        """
        unit = math.prod(self.mesh.shape.values()) * solve_size
        return -(-batch_size // unit) * unit

    def local_rows(self, batch_size: int) -> np.ndarray:
        """Return the rows of the global batch on this process: integers `[n]`, ascending."""
        places = self.batch_sharding.addressable_devices_indices_map((batch_size,)).values()
        held = [np.arange(batch_size)[rows] for (rows,) in places]  # type: ignore[misc]
        return np.unique(np.concatenate(held))

    def put_batch(self, batch: types.Batch, batch_size: int) -> types.Batch:
        """Make global arrays of a batch; each process provides the rows of its devices.

        Args:
            batch: NumPy arrays of the rows `local_rows(batch_size)`.
            batch_size: size of the global batch.
        """
        sharding, rows = self.batch_sharding, self.local_rows(batch_size)

        def put(array: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                # On a mesh of groups, the rows of one process need not be adjacent.
                first, last, _ = index[0].indices(batch_size)
                return array[np.searchsorted(rows, first) : np.searchsorted(rows, last)]

            shape = (batch_size, *array.shape[1:])
            return jax.make_array_from_callback(shape, sharding, part)

        return {name: put(np.asarray(array)) for name, array in batch.items()}


def over_local_devices(fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Map `fn(given, batch)` over devices of this process, each with its own rows of the batch.

    `given` is replicated; leaves of the batch and of the result are `[B, ...]`. As many devices are
    used as B can be divided by; a single one computes `fn` as it is.
    """

    @functools.wraps(fn)
    def mapped(given: Any, batch: Any) -> Any:
        devices, rows = jax.local_devices(), len(jax.tree.leaves(batch)[0])
        count = next(n for n in range(len(devices), 0, -1) if rows % n == 0)
        if count == 1:
            return fn(given, batch)
        mesh = Mesh(np.asarray(devices[:count]), (mesh_lib.DATA,))
        split = PartitionSpec(mesh_lib.DATA)
        return _shard_map(fn, mesh, (PartitionSpec(), split), split)(given, batch)

    return mapped


def _shard_map(fn: Callable[..., Any], mesh: Any, in_specs: Any, out_specs: Any) -> Any:
    # The check does not support loops whose length differs between devices.
    return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def abstract(tree: Any, shardings: Any) -> Any:
    """Return the shapes and dtypes of `tree` with shardings, the target of a restore."""
    return jax.tree.map(
        lambda each, sharding: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=sharding),
        tree,
        shardings,
    )
