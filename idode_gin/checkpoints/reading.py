"""Read and verify leaves of a checkpoint, onto the devices and dtypes of a run."""

import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from idode_gin import types
from idode_gin.checkpoints import files, orbax_internals, orbax_logging, waiting
from idode_gin.checkpoints import meta as checkpoint_meta
from idode_gin.devices import partitioning
from idode_gin.processes import exchange
from idode_gin.reports import fingerprints, paths

Leaves = dict[str, jax.Array]
Found = TypeVar("Found")
_OUTAGE = re.compile(
    "UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|"
    "retry attempts|[Tt]imed? ?out|[Cc]onnect|http_response_code='(?!404|416)"
)
"""Words of tensorstore's errors that do not come from what a checkpoint holds.

S3 answers with a code and words of its own, such as 400 for a token that has expired.
"""


class RestoredParams(NamedTuple):
    """Parameters, their step, their checkpoint, and the facts of the run that wrote it."""

    params: types.Params
    step: int
    path: pathlib.Path
    facts: dict[str, Any]


def restore_params(
    path: str | pathlib.Path, abstract_params: Any, *, ema: bool = True
) -> RestoredParams:
    """Restore the parameters of a checkpoint.

    Args:
        path: a run directory (its newest intact checkpoint) or a `checkpoint_<step>` directory.
        abstract_params: shapes and dtypes, such as from `jax.eval_shape`; leaves with a sharding
            are placed accordingly, others are replicated over all devices.
        ema: True for the moving average, False for the parameters themselves.

    Raises:
        ValueError: if there is no checkpoint, it is damaged, or it belongs to another network.
    """
    part = "ema" if ema else "params"

    def load(found: pathlib.Path) -> RestoredParams:
        meta = checkpoint_meta.read_meta(found)
        checkpoint_meta.check_same_leaves(found, meta, {part: abstract_params})
        params = like(abstract_params, read_leaves(found, meta, part, shardings(abstract_params)))
        return RestoredParams(params, int(meta["step"]), found, dict(meta["facts"]))

    return first_whole(path, None, load)


def first_whole(
    path: str | pathlib.Path, mode: str | None, load: Callable[[pathlib.Path], Found]
) -> Found:
    """Return `files.first_whole` of a `load` that all processes call at the same checkpoint.

    A run that is trained meanwhile adds and deletes checkpoints: process 0 lists them for all.
    """
    return files.first_whole(path, mode, together(load), listed)


def listed(find: Callable[[], Sequence[pathlib.Path]]) -> list[pathlib.Path]:
    """Return on all processes the paths that `find` returns on process 0."""
    text = exchange.from_first(lambda: "\0".join(map(os.fspath, find())).encode())
    return [paths.of(each) for each in text.decode().split("\0") if each]


def together(load: Callable[[pathlib.Path], Found]) -> Callable[[pathlib.Path], Found]:
    """Return `load` for all processes: if one cannot read the description, it fails on all.

    Only then may a process rename the checkpoint: the others have read it.

    Raises:
        OSError: by the function, if some processes can read the description and others cannot.
    """

    def loaded(checkpoint: pathlib.Path) -> Found:
        error: Exception | None = None
        try:
            checkpoint_meta.read_meta(checkpoint)
        except paths.StoreError:
            raise
        except (checkpoint_meta.DamagedError, OSError) as caught:
            error = caught
        if not exchange.is_any(error is not None):
            return load(checkpoint)
        if exchange.is_any(error is None) or error is None:
            raise OSError(
                f"Only some processes can read {checkpoint}: they must see the same files. Check "
                "that its disk is mounted everywhere."
            )
        raise error

    return loaded


def read_leaves(
    checkpoint: pathlib.Path,
    meta: Mapping[str, Any],
    part: str,
    placed: Mapping[str, jax.sharding.Sharding],
) -> Leaves:
    """Read every leaf of one part, by name, in the dtype it was saved in.

    Args:
        checkpoint: its directory.
        meta: description from `meta.read_meta`.
        part: name of the part.
        placed: shardings of leaves by name; other leaves are replicated over all devices.

    Raises:
        DamagedError: if the part cannot be read or its checksums do not match.
        OSError: if it cannot be read for another reason, such as lack of memory.
        ValueError: if it holds float64 numbers and JAX is in its 32-bit mode.
    """
    saved = checkpoint_meta.saved_leaves(checkpoint, meta, part)
    replicated = partitioning.PjitPartitioner().replicated

    def abstract(path: Any, _: Any) -> jax.ShapeDtypeStruct:
        name = fingerprints.path_name(path)
        dtype, shape = saved[name]
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed.get(name, replicated))

    def restore() -> Any:
        # Not through a Checkpointer: if one process fails, the others would wait in it.
        found = handler.metadata(checkpoint / part)
        target = jax.tree_util.tree_map_with_path(abstract, getattr(found, "tree", found))
        return handler.restore(checkpoint / part, args=ocp.args.StandardRestore(target))

    orbax_internals.accept(checkpoint)
    error, leaves = None, {}
    handler = ocp.StandardCheckpointHandler()
    try:
        with orbax_logging.silent_stragglers():
            tree = waiting.while_answering(checkpoint, restore)
        leaves = dict(fingerprints.paths_and_leaves(tree))
    except Exception as caught:  # orbax and tensorstore raise errors of many types
        error = caught
    finally:
        handler.close()
    why = "another process could not" if error is None else orbax_logging.reason(error)
    if exchange.is_any(error is not None and _is_outage(checkpoint, error)):
        raise paths.StoreError(f"The {part} of {checkpoint} cannot be read now: {why}.") from error
    if exchange.is_any(error is not None and checkpoint_meta.is_no_damage(error)):
        raise OSError(checkpoint_meta.kept(checkpoint, part, why)) from error
    if exchange.is_any(error is not None):
        raise checkpoint_meta.DamagedError(
            f"{checkpoint} is damaged: its {part} cannot be read ({why})."
        ) from error
    sums = fingerprints.checksums(leaves)
    checkpoint_meta.check_sums(checkpoint, meta, part, sums, leaves)
    return leaves


def _is_outage(checkpoint: pathlib.Path, error: Exception) -> bool:
    """Return True if a bucket did not answer, or answered that it may not be read."""
    is_of_store = isinstance(error, paths.StoreError) or _OUTAGE.search(str(error)) is not None
    return paths.in_bucket(checkpoint) and is_of_store


def like(abstract: Any, leaves: Mapping[str, Any]) -> Any:
    """Return a tree like `abstract`, with its dtypes and shardings, of `leaves` by name."""

    def placed(path: Any, want: Any) -> jax.Array:
        leaf = jnp.asarray(leaves[fingerprints.path_name(path)]).astype(want.dtype)
        sharding = getattr(want, "sharding", None)
        return leaf if sharding is None else jax.device_put(leaf, sharding)

    return jax.tree_util.tree_map_with_path(placed, abstract)


def shardings(abstract: Any) -> dict[str, jax.sharding.Sharding]:
    """Return the shardings of leaves by name; leaves without one are left out."""
    named = fingerprints.paths_and_leaves(abstract)
    found = {name: getattr(leaf, "sharding", None) for name, leaf in named}
    return {name: each for name, each in found.items() if each is not None}
