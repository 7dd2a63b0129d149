"""Leaves of a checkpoint, checked one by one, onto whatever devices and dtypes a run has."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from idode_gin import types
from idode_gin.checkpoints import files, orbax_logging
from idode_gin.checkpoints import meta as checkpoint_meta
from idode_gin.devices import partitioning
from idode_gin.reports import fingerprints

Leaves = dict[str, jax.Array]


class RestoredParams(NamedTuple):
    """Parameters, their step, their checkpoint, and what the run that wrote it said of itself."""

    params: types.Params
    step: int
    path: pathlib.Path
    facts: dict[str, Any]


def restore_params(
    path: str | pathlib.Path, abstract_params: Any, *, ema: bool = True
) -> RestoredParams:
    """Parameters of a checkpoint.

    Args:
        path: a run directory (its newest checkpoint that is not damaged) or a `checkpoint_<step>`
            directory.
        abstract_params: shapes and dtypes, such as `jax.eval_shape` gives; leaves with a sharding
            are placed accordingly, the others are replicated over all devices.
        ema: the moving average, or else the last parameters themselves.

    Raises:
        ValueError: if there is no checkpoint, it is damaged, or another network's.
    """
    part = "ema" if ema else "params"

    def load(found: pathlib.Path) -> RestoredParams:
        meta = checkpoint_meta.read_meta(found)
        params = read_trees(found, meta, {part: abstract_params})[part]
        return RestoredParams(params, int(meta["step"]), found, dict(meta["facts"]))

    return files.first_whole(path, None, load)


def read_trees(
    checkpoint: pathlib.Path, meta: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """Parts of a checkpoint as trees like `wanted`: its shapes, dtypes and shardings.

    Raises:
        DamagedError: if a part cannot be read, or is not what was written.
        ValueError: if names or shapes differ.
    """
    checkpoint_meta.check_same_leaves(checkpoint, meta, wanted)
    found = {}
    for part, abstract in wanted.items():
        leaves = read_leaves(checkpoint, meta, part, shardings(abstract))
        found[part] = like(abstract, leaves)
    return found


def read_leaves(
    checkpoint: pathlib.Path,
    meta: Mapping[str, Any],
    part: str,
    placed: Mapping[str, jax.sharding.Sharding],
) -> Leaves:
    """Every leaf of one part by its name, in the dtype it was saved in.

    Args:
        checkpoint: its directory.
        meta: what `checkpoint_meta.read_meta` gave.
        part: the name of the part.
        placed: where leaves are to lie; the others are replicated over all devices.

    Raises:
        DamagedError: if the part cannot be read, or is not what was written.
        ValueError: if it holds float64 numbers, and JAX does not.
    """
    saved = checkpoint_meta.saved_leaves(checkpoint, meta, part)
    replicated = partitioning.PjitPartitioner().replicated

    def abstract(path: Any, _: Any) -> jax.ShapeDtypeStruct:
        name = fingerprints.path_name(path)
        dtype, shape = saved[name]
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed.get(name, replicated))

    error, leaves = None, {}
    handler = ocp.StandardCheckpointHandler()
    try:
        with orbax_logging.silent_stragglers():
            # Not through a Checkpointer: where one process fails, the others would wait in it.
            found = handler.metadata(checkpoint / part)
            target = jax.tree_util.tree_map_with_path(abstract, getattr(found, "tree", found))
            tree = handler.restore(checkpoint / part, args=ocp.args.StandardRestore(target))
        leaves = dict(fingerprints.paths_and_leaves(tree))
    except Exception as caught:  # orbax and tensorstore raise whatever they like
        error = caught
    finally:
        handler.close()
    if _anywhere(error is not None):
        why = "another process could not" if error is None else orbax_logging.reason(error)
        raise checkpoint_meta.DamagedError(
            f"{checkpoint} is damaged: its {part} cannot be read ({why})."
        ) from error
    sums = fingerprints.checksums(leaves)
    checkpoint_meta.check_sums(checkpoint, meta, part, sums, leaves)
    return leaves


def like(abstract: Any, leaves: Mapping[str, Any]) -> Any:
    """A tree like `abstract`, with its dtypes and shardings, of `leaves` by name."""

    def placed(path: Any, want: Any) -> jax.Array:
        leaf = jnp.asarray(leaves[fingerprints.path_name(path)]).astype(want.dtype)
        sharding = getattr(want, "sharding", None)
        return leaf if sharding is None else jax.device_put(leaf, sharding)

    return jax.tree_util.tree_map_with_path(placed, abstract)


def shardings(abstract: Any) -> dict[str, jax.sharding.Sharding]:
    """Where leaves are to lie, by name; those that do not say are left out."""
    named = fingerprints.paths_and_leaves(abstract)
    found = {name: getattr(leaf, "sharding", None) for name, leaf in named}
    return {name: each for name, each in found.items() if each is not None}


def _anywhere(flag: bool) -> bool:
    """Whether `flag` holds on any process; each must ask."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
