"""The device mesh: number of devices along each axis, and placement of devices.

data     data parallel: the batch is split, parameters are replicated
fsdp     fully sharded data parallel: the batch is split, and so are parameters, their moving
         average and the optimizer's state; parameters are gathered for computation
model    tensor parallel: devices share the work on the same images, split by channels
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh

from idode_gin import checks

DATA, FSDP, MODEL = AXES = ("data", "fsdp", "model")
REST = -1

MeshShape: TypeAlias = Mapping[str, int] | Sequence[int] | None
"""Devices along each axis: by name, as three numbers in the order of `AXES`, or None for 1."""

Sizes: TypeAlias = tuple[int, int, int]
"""Devices along `AXES`."""


def resolve(
    mesh_shape: MeshShape,
    dcn_mesh_shape: MeshShape,
    num_partitions: int,
    num_devices: int | None,
) -> tuple[Sizes, Sizes]:
    """Return the mesh sizes within a group of devices with a fast network, and across groups.

    Args:
        mesh_shape: sizes within a group; -1, or `data` left out, takes the remaining devices.
        dcn_mesh_shape: sizes across groups.
        num_partitions: size of `model` if `mesh_shape` does not give it.
        num_devices: number of devices; None for as many as the mesh needs, with -1 as 1.

    Raises:
        ValueError: for an unknown axis, a size below 1, or a mesh that does not fit the devices.
    """
    across = _named("dcn_mesh_shape", dcn_mesh_shape)
    if REST in across.values():
        raise ValueError(f"`dcn_mesh_shape` must give numbers above 0, got {dcn_mesh_shape}.")
    within = {DATA: REST} | {MODEL: num_partitions} | _named("mesh_shape", mesh_shape)
    if num_partitions not in (1, within[MODEL]):
        raise ValueError(
            f"`num_partitions` is the size of the mesh axis '{MODEL}', got num_partitions="
            f"{num_partitions} and mesh_shape={mesh_shape}. Bind one of the two."
        )
    outer = [across.get(axis, 1) for axis in AXES]
    inner = [within.get(axis, 1) for axis in AXES]
    if inner.count(REST) > 1 and DATA not in _named("mesh_shape", mesh_shape):
        inner[0] = 1
    if inner.count(REST) > 1:
        raise ValueError(f"`mesh_shape` may hold -1 once, got {mesh_shape}.")
    known = math.prod(each for each in inner if each != REST) * math.prod(outer)
    rest = 1 if num_devices is None else max(1, num_devices // known)
    inner = [rest if each == REST else each for each in inner]
    _check_number(inner, outer, num_devices)
    return (inner[0], inner[1], inner[2]), (outer[0], outer[1], outer[2])


@functools.lru_cache(maxsize=16)  # used at every step, and slow to compute for a pod
def of_devices(within: Sizes, across: Sizes, devices: tuple[Any, ...]) -> Mesh:
    """Return a mesh of real devices, with network neighbours adjacent.

    Raises:
        ValueError: if the number of device groups differs from `across`.
    """
    # Not jax.make_mesh: its axes are explicit since jax 0.10, which flax's convolutions refuse.
    return Mesh(places(within, across, devices), AXES)


def places(within: Sizes, across: Sizes, devices: Sequence[Any]) -> np.ndarray:
    """Return the devices in an array with one axis per mesh axis. Raises as `of_devices`."""
    if math.prod(across) == 1:
        return mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(
        within,
        across,
        devices,
        process_is_granule=_process_is_group(math.prod(across), devices),
        allow_split_physical_axes=True,
    )


def abstract(within: Sizes, across: Sizes) -> AbstractMesh:
    """Return a mesh whose devices need not exist: for shapes, not for arrays."""
    return AbstractMesh(tuple(i * j for i, j in zip(within, across, strict=True)), AXES)


def shown(sizes: Mapping[str, int]) -> str:
    """Format sizes, such as "data=2 x fsdp=4 x model=1"."""
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items())


def _process_is_group(groups: int, devices: Sequence[Any]) -> bool:
    """Return True if the groups of `dcn_mesh_shape` are processes, False for slices of a pod."""
    slices = {getattr(device, "slice_index", 0) for device in devices}
    processes = {device.process_index for device in devices}
    if groups not in (len(slices), len(processes)):
        raise ValueError(
            "The product of `dcn_mesh_shape` must be the number of slices or of processes, got "
            f"{groups}. There are {len(slices)} slices and {len(processes)} processes."
        )
    return groups != len(slices)


def _named(name: str, shape: MeshShape) -> dict[str, int]:
    if shape is None:
        return {}
    if not isinstance(shape, Mapping):
        if len(shape) != len(AXES):
            raise ValueError(
                f"`{name}` must be {len(AXES)} numbers for {', '.join(AXES)}, got "
                f"{tuple(shape)}. Or name them: {{'{DATA}': 2, '{FSDP}': 4}}."
            )
        shape = dict(zip(AXES, shape, strict=True))
    for axis, size in shape.items():
        if axis not in AXES:
            raise ValueError(
                f"`{name}` must use the axes {', '.join(AXES)}, got {axis!r}. "
                f"{checks.nearest(str(axis), AXES)}"
            )
        if size != REST:
            checks.check_integer(f"{name}[{axis!r}]", size, at_least=1)
    return dict(shape)


def _check_number(inner: list[int], outer: list[int], num_devices: int | None) -> None:
    sizes = {axis: i * j for axis, i, j in zip(AXES, inner, outer, strict=True)}
    wanted = math.prod(sizes.values())
    if num_devices is None or wanted == num_devices:
        return
    fixed = wanted // inner[0]
    way_out = (
        f"Leave '{DATA}' out of `mesh_shape`, and it takes the remaining devices"
        if num_devices % fixed == 0
        else f"Choose '{FSDP}', '{MODEL}' and `dcn_mesh_shape` whose product divides {num_devices}"
    )
    raise ValueError(
        f"The size of the mesh must be the number of devices, got {shown(sizes)} = {wanted} "
        f"and {num_devices} devices. {way_out}. (--dry_run describes a mesh without its devices; "
        "on a CPU, JAX_NUM_CPU_DEVICES sets their number.)"
    )
