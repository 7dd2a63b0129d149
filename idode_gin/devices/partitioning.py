"""Where arrays live: the device mesh, and which axis of what lies along it."""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, final

import jax
import numpy as np
from absl import logging
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from idode_gin import checks, types
from idode_gin.devices import axis_rules
from idode_gin.devices import mesh as mesh_lib
from idode_gin.devices.mesh import MeshShape

BATCH_AXES = (mesh_lib.DATA, mesh_lib.FSDP)

Rules: TypeAlias = Sequence[tuple[str, str | tuple[str, ...] | None]]


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class PjitPartitioner:
    """Splits batches, parameters and what mirrors them over a mesh of devices. Names are t5x's.

    The axes of the mesh are `data`, `fsdp` and `model` (see `mesh`). A batch is split over `data`
    and `fsdp`. Parameters, their moving average and the optimizer's state are split as
    `logical_axis_rules` say: with the default ones over `fsdp` wherever a parameter divides, and
    inside a block over `model`. An array that no rule can divide is whole on every device.

    Args:
        num_partitions: devices that share the work on the same images: the size of `model`.
        mesh_shape: devices along each axis, such as {'data': 2, 'fsdp': 4} or (2, 4, 1); -1 is what
            is left, and so is a `data` left out. None: all devices along `data` that
            `num_partitions` leaves.
        dcn_mesh_shape: of groups of devices (slices of a pod, or processes) that a slower network
            joins, such as {'data': 2}; `mesh_shape` is then that of one group. None: one group.
        logical_axis_rules: pairs (name of a parameter's axis, mesh axis, several, or None) in
            order of priority; see `axis_rules.spec`. `networks.layers` has the names.

    Raises:
        ValueError: for a mesh that the devices do not fill, and for an unknown mesh axis.
    """

    num_partitions: int = 1
    mesh_shape: MeshShape = None
    dcn_mesh_shape: MeshShape = None
    logical_axis_rules: Rules = axis_rules.DEFAULT
    _is_abstract: bool = dataclasses.field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.check_integer("num_partitions", self.num_partitions, at_least=1)
        object.__setattr__(self, "logical_axis_rules", axis_rules.check(self.logical_axis_rules))
        self._sizes(None)

    def without_devices(self) -> "PjitPartitioner":
        """The same with a mesh of devices that need not be there, for shapes alone.

        Sizes left to the number of devices are 1.
        """
        other = copy.copy(self)
        object.__setattr__(other, "_is_abstract", True)
        return other

    @property
    def mesh(self) -> Mesh | AbstractMesh:
        """The devices of all processes."""
        if self._is_abstract:
            return mesh_lib.abstract(*self._sizes(None))
        devices = tuple(jax.devices())
        return mesh_lib.of_devices(*self._sizes(len(devices)), devices)

    @property
    def shown(self) -> str:
        """The mesh in words: "data=2 x fsdp=4 x model=1, 8 devices"."""
        shape = self.mesh.shape
        return f"{mesh_lib.shown(shape)}, {self.mesh.size} devices"

    def _sizes(self, devices: int | None) -> tuple[mesh_lib.Sizes, mesh_lib.Sizes]:
        return mesh_lib.resolve(self.mesh_shape, self.dcn_mesh_shape, self.num_partitions, devices)

    @property
    def batch_sharding(self) -> NamedSharding:
        """Of every array of a batch: split along its first axis."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    @property
    def batch_parts(self) -> int:
        """Parts that a batch is split into."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    @property
    def replicated(self) -> NamedSharding:
        """Of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def per_device(self, fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """`fn(params, batch)` on every device's own rows of the batch, as if it were alone.

        A loop in it stops when that device's images are done, so nothing in it may wait for other
        devices: `params` are whole on each, put together once before, and every device has rows of
        its own, those along `model` too. Leaves of the batch and of the result are `[B, ...]`.
        """
        rows = PartitionSpec(mesh_lib.AXES)
        return _shard_map(fn, self.mesh, (PartitionSpec(), rows), rows)

    def param_sharding(self, params: types.Params, logical_axes: Any) -> Any:
        """One sharding per parameter, as the rules say.

        Args:
            params: parameters, or their shapes.
            logical_axes: names of their axes: see `AbstractNetwork.logical_axes`.

        Raises:
            ValueError: for a rule about an unknown axis, or an axis that does not divide by
                `model`, or if no parameter is split over a `model` above 1.
        """
        here, rules = self.mesh, axis_rules.check(self.logical_axis_rules)
        axis_rules.check_names(rules, logical_axes)
        specs = axis_rules.specs(params, logical_axes, rules, here.shape)
        self._check_use(specs)
        return jax.tree.map(lambda spec: NamedSharding(here, spec), specs)

    def _check_use(self, specs: Any) -> None:
        used = {axis for spec in jax.tree.leaves(specs) for axis in axis_rules.axes_of(spec)}
        model, fsdp = self.mesh.shape[mesh_lib.MODEL], self.mesh.shape[mesh_lib.FSDP]
        if model > 1 and mesh_lib.MODEL not in used:
            raise ValueError(
                "`num_partitions`, the size of the mesh axis 'model', must be 1 where no rule "
                f"splits a parameter over it, got {model}: these devices would all do the same "
                "work. Name the network's axes, or use 'data' or 'fsdp'."
            )
        if fsdp > 1 and mesh_lib.FSDP not in used:
            logging.warning(
                "No parameter is split over the mesh axis 'fsdp' of %d devices: no rule divides "
                "any. Every device holds all of them, as with 'data'.",
                fsdp,
            )

    def state_sharding(self, abstract_state: Any, logical_axes: Any = None) -> Any:
        """One sharding per leaf of the state, in a tree of the same structure.

        Args:
            abstract_state: a state with `params`, or its shapes; what mirrors a parameter is split
                like it.
            logical_axes: names of the parameters' axes; None leaves everything whole.
        """
        if logical_axes is None:
            return jax.tree.map(lambda _: self.replicated, abstract_state)
        params = abstract_state.params
        shardings = self.param_sharding(params, logical_axes)
        return axis_rules.like_parameters(abstract_state, params, self.replicated, shardings)

    def as_used(self, shardings: Any) -> Any:
        """Of parameters while they are computed with: whole, but for what `model` splits.

        Args:
            shardings: of the parameters as stored.
        """

        def used(sharding: NamedSharding) -> NamedSharding:
            return NamedSharding(sharding.mesh, axis_rules.only(mesh_lib.MODEL, sharding.spec))

        return jax.tree.map(used, shardings)

    def gathered(self, shardings: Any) -> Callable[[types.Params], types.Params]:
        """A function from parameters as they are stored to parameters as they are used.

        Its gradient goes the other way: a sum over devices of which each keeps the part that it
        stores, for every microbatch anew.

        Args:
            shardings: of the parameters as stored.
        """
        whole = self.as_used(shardings)
        if jax.tree.leaves(whole) == jax.tree.leaves(shardings):
            return lambda params: params

        @jax.custom_vjp
        def gather(params: types.Params) -> types.Params:
            return jax.lax.with_sharding_constraint(params, whole)

        def backward(_: None, grads: types.Params) -> tuple[types.Params]:
            return (jax.lax.with_sharding_constraint(grads, shardings),)

        gather.defvjp(lambda params: (gather(params), None), backward)
        return gather

    def whole(self, tree: Any) -> Any:
        """The arrays of `tree`, each whole on every device. All processes must call it."""
        if all(each.is_fully_replicated for each in jax.tree.leaves(tree)):
            return tree
        return jax.jit(lambda each: each, out_shardings=self.replicated)(tree)

    def check_batch_size(
        self, name: str, batch_size: int, num_microbatches: int = 1, *, per_device: bool = False
    ) -> None:
        """Raises ValueError, naming the next valid size, unless the batch has equal parts.

        Args:
            name: of the size.
            batch_size: of the global batch.
            num_microbatches: parts it is worked through in.
            per_device: for `per_device`, where devices along `model` have rows of their own.
        """
        checks.check_positive(name, batch_size)
        sizes = self.mesh.shape
        axes = mesh_lib.AXES if per_device else BATCH_AXES
        parts = {axis: sizes[axis] for axis in axes if sizes[axis] > 1 or axis == mesh_lib.DATA}
        if num_microbatches > 1:
            parts["num_microbatches"] = num_microbatches
        unit = math.prod(parts.values())
        checks.check_multiple(name, batch_size, " * ".join(parts), unit)

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
        sharding, rows = self.batch_sharding, self.local_rows(batch_size)

        def put(array: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                # Not by counting: on a mesh of groups, rows of one process need not be neighbours.
                first, last, _ = index[0].indices(batch_size)
                return array[np.searchsorted(rows, first) : np.searchsorted(rows, last)]

            shape = (batch_size, *array.shape[1:])
            return jax.make_array_from_callback(shape, sharding, part)

        return {name: put(np.asarray(array)) for name, array in batch.items()}


def _shard_map(fn: Callable[..., Any], mesh: Any, in_specs: Any, out_specs: Any) -> Any:
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
