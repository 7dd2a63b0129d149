"""Resources of a run: a table of its parameters, and bytes per device."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from idode_gin.devices import partitioning
from idode_gin.reports import fingerprints

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class _Row:
    name: str
    shape: str
    dtype: str
    axes: str
    partition: str
    bytes_per_device: int


def parameter_table(params: Any, logical_axes: Any = None) -> str:
    """Return a table of all parameters: shape, dtype, axis names, sharding, bytes per device.

    Args:
        params: arrays, or their shapes with shardings.
        logical_axes: tree of the same structure with axis names; None without names.
    """
    from clu import parameter_overview

    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [()] * len(leaves) if logical_axes is None else jax.tree.leaves(logical_axes)
    rows = [
        _Row(
            name=fingerprints.path_name(path),
            shape=_listed(leaf.shape),
            dtype=str(leaf.dtype),
            axes=_listed(each),
            partition=_listed(getattr(getattr(leaf, "sharding", None), "spec", ())),
            bytes_per_device=bytes_per_device(leaf),
        )
        for (path, leaf), each in zip(leaves, names, strict=True)
    ]
    total = sum(math.prod(leaf.shape) for _, leaf in leaves)
    return f"{parameter_overview.make_table(rows)}\nTotal: {total:,} parameters"


def bytes_per_device(tree: Any) -> int:
    """Return the bytes of a tree on one device; a leaf without sharding counts as replicated."""
    return sum(_leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def state_bytes(state: Any, as_used: Any) -> dict[str, int]:
    """Return the bytes per device during an update of a training state, by part.

    Gradients are sharded like their parameters.

    Args:
        state: shapes and shardings of the state.
        as_used: shardings of the parameters during computation.
    """
    stored, used = state.params, partitioning.abstract(state.params, as_used)
    parts = {
        "parameters": bytes_per_device(stored),
        "moving average": bytes_per_device(state.ema),
        "optimizer": bytes_per_device(state.opt_state),
        "gradients": bytes_per_device(stored),
    }
    if bytes_per_device(used) > bytes_per_device(stored):
        parts["parameters, gathered"] = bytes_per_device(used)
    return parts


def kept_bytes(loss: Callable[..., Any], params: Any, *others: Any) -> int:
    """Estimate the bytes of activations that the gradient of `loss(params, *others)` keeps.

    The estimate comes from shapes alone: residuals of differentiation without the parameters. A
    compiler that fuses keeps less, and needs temporary buffers in addition.
    """
    plain = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    kept = jax.eval_shape(lambda p, *rest: jax.vjp(lambda q: loss(q, *rest), p)[1], plain, *others)
    return max(0, bytes_per_device(kept) - bytes_per_device(plain))


def memory_table(parts: Mapping[str, int]) -> str:
    """Format the parts and their sum in MiB."""
    rows = [*parts.items(), ("sum", sum(parts.values()))]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}{size / MIB:>12,.1f} MiB" for name, size in rows)


def _leaf_bytes(leaf: Any) -> int:
    sharding = getattr(leaf, "sharding", None)
    shape = leaf.shape if sharding is None else sharding.shard_shape(tuple(leaf.shape))
    return math.prod(shape) * leaf.dtype.itemsize


def _listed(values: Any) -> str:
    shown = ["+".join(each) if isinstance(each, tuple) else each for each in values]
    return ", ".join("-" if each is None else str(each) for each in shown)
