"""Map the axis names of an array to the mesh axes they are split over."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
from jax.sharding import PartitionSpec

from idode_gin import checks
from idode_gin.devices import mesh

Rule: TypeAlias = tuple[str, str | tuple[str, ...] | None]
"""Name of an array axis, and the mesh axis or axes it is split over, or None."""

DEFAULT: tuple[Rule, ...] = (
    # Inside a block only: activations between blocks are replicated along `model`.
    ("hidden", mesh.MODEL),
    ("heads", mesh.MODEL),
    ("channels_in", mesh.FSDP),
    ("channels", mesh.FSDP),
    ("hidden", mesh.FSDP),
    ("heads", mesh.FSDP),
    ("embedding_in", mesh.FSDP),
    ("embedding", mesh.FSDP),
    ("features", mesh.FSDP),
)


def check(rules: Sequence[Any]) -> tuple[Rule, ...]:
    """Return the rules as tuples.

    Raises:
        ValueError: if a rule is not a pair or names an unknown mesh axis.
    """
    checked = []
    for rule in rules:
        if not isinstance(rule, list | tuple) or len(rule) != 2 or not isinstance(rule[0], str):
            raise ValueError(
                f"`logical_axis_rules` must be pairs (axis name, mesh axis or None), got {rule!r}."
            )
        target = tuple(rule[1]) if isinstance(rule[1], list) else rule[1]
        for axis in _axes(target):
            if axis not in mesh.AXES:
                raise ValueError(
                    f"A rule of `logical_axis_rules` names the unknown mesh axis {axis!r}, got "
                    f"{tuple(rule)!r}. {checks.nearest(str(axis), mesh.AXES)} The axes are "
                    f"{', '.join(mesh.AXES)}."
                )
        checked.append((rule[0], target))
    return tuple(checked)


def check_names(rules: Sequence[Rule], logical_axes: Any) -> None:
    """Raise ValueError if a rule that is not a default names an axis that no parameter has."""
    names = {name for each in jax.tree.leaves(logical_axes) for name in each if name is not None}
    for rule in rules:
        if rule[0] not in names and rule not in DEFAULT:
            raise ValueError(
                f"A rule of `logical_axis_rules` is for the axis {rule[0]!r}, which no parameter "
                f"has, got {rule!r}. {checks.nearest(rule[0], names)} (Batches need no rules.)"
            )


def spec(
    names: Sequence[str | None],
    shape: Sequence[int],
    rules: Sequence[Rule],
    sizes: Mapping[str, int],
    what: str = "array",
) -> PartitionSpec:
    """Return the mesh axes that each axis of one array is split over.

    Rules apply in order. A rule splits the array axis of its name over its mesh axis if that mesh
    axis does not split the array yet and the parts are equal. None excludes the array axis from
    later rules.

    Args:
        names: names of the array's axes.
        shape: shape of the array.
        rules: in order of priority.
        sizes: devices along each mesh axis.
        what: name of the array in error messages.

    Raises:
        ValueError: if an axis does not divide into equal parts over 'model'. Over other mesh axes,
            which only save memory, such an axis is replicated.
    """
    split: list[list[str]] = [[] for _ in names]
    closed: set[str] = set()
    for name, target in rules:
        if name not in names or name in closed:
            continue
        if target is None:
            closed.add(name)
            continue
        place = list(names).index(name)
        for axis in _axes(target):
            if sizes[axis] == 1 or any(axis in each for each in split):
                continue
            parts = math.prod(sizes[each] for each in split[place]) * sizes[axis]
            if shape[place] % parts == 0:
                split[place].append(axis)
            elif axis == mesh.MODEL:
                raise ValueError(_uneven(name, shape[place], sizes[axis], what))
    if not any(split):
        return PartitionSpec()
    return PartitionSpec(*split)


def like_parameters(tree: Any, params: Any, whole: Any, of_params: Any) -> Any:
    """Give each leaf of `tree` the entry in `of_params` of the parameter it mirrors, else `whole`.

    A leaf mirrors a parameter if its path ends with the parameter's path and the shapes are equal:
    moments, accumulated gradients and averages, wherever an optimizer keeps them.
    """
    named = jax.tree_util.tree_leaves_with_path(params)
    table = {
        path: (tuple(leaf.shape), each)
        for (path, leaf), each in zip(named, jax.tree.leaves(of_params), strict=True)
    }

    def of_leaf(path: tuple[Any, ...], leaf: Any) -> Any:
        for start in range(len(path)):  # longest suffix first
            shape, each = table.get(path[start:], (None, None))
            if shape is not None:
                return each if shape == tuple(leaf.shape) else whole
        return whole

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def only(axis: str, full: PartitionSpec) -> PartitionSpec:
    """Return the spec with every other mesh axis removed."""
    kept = [[each for each in _axes(entry) if each == axis] for entry in full]
    return PartitionSpec(*kept) if any(kept) else PartitionSpec()


def axes_of(full: PartitionSpec) -> set[str]:
    """Return the mesh axes that a spec uses."""
    return {axis for entry in full for axis in _axes(entry)}


def _axes(target: Any) -> tuple[Any, ...]:
    if target is None:
        return ()
    return target if isinstance(target, tuple) else (target,)


def _uneven(name: str, size: int, devices: int, what: str) -> str:
    return (
        f"`{name}` must be a multiple of the mesh axis '{mesh.MODEL}' that a rule splits it over, "
        f"got {name}={size} in {what} and {mesh.MODEL}={devices}. The next valid size is "
        f"{size - size % devices + devices}; or let '{mesh.MODEL}' divide {size}; or put the rule "
        f"({name!r}, None) first."
    )
