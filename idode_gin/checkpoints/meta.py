"""The JSON beside saved pytrees: names, shapes, dtypes and checksums of their leaves.

With it a checkpoint of another architecture, or a damaged one, is told apart from a good one, leaf
by leaf and whatever the version of the library that wrote the files.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from idode_gin.reports import fingerprints

FORMAT = 1
_SHOWN = 5
_COUNTERS = ("window", "guard")
"""Flat parts of `training` that may differ from what this run keeps: they can start anew."""


class DamagedError(ValueError):
    """A checkpoint's files are missing, cut short or altered."""


def describe(
    parts: Mapping[str, Any], sums: Mapping[str, Any], *, step: int, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON that lies beside `parts`.

    Args:
        parts: trees of arrays, by the name of the directory each is saved in.
        sums: `fingerprints.checksums` of each.
        step: of the training run.
        facts: about the run.
    """
    trees = {
        name: {path: [str(leaf.dtype), *leaf.shape] for path, leaf in _named(part).items()}
        for name, part in parts.items()
    }
    checksums = {name: np.asarray(each).tolist() for name, each in sums.items()}
    return {
        "format": FORMAT,
        "step": step,
        "facts": dict(facts),
        "trees": trees,
        "checksums": checksums,
    }


def read_meta(checkpoint: pathlib.Path) -> dict[str, Any]:
    """What `describe` said when the checkpoint was written.

    Raises:
        DamagedError: if it cannot be read.
        ValueError: if it was written by a newer version of this library.
    """
    path = checkpoint / "meta" / "metadata"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        version = meta["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(
            f"{checkpoint} is no whole checkpoint of this library: cannot read meta/metadata "
            f"({error})."
        ) from error
    if version != FORMAT:
        raise ValueError(
            f"{checkpoint} has format {version}, and this version of idode_gin reads format "
            f"{FORMAT}. Read it with the version that wrote it."
        )
    return meta


def saved_leaves(
    checkpoint: pathlib.Path, meta: Mapping[str, Any], part: str
) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Dtype and shape of every leaf of a part, by name.

    Raises:
        ValueError: if the leaves are float64 and JAX is not.
    """
    found = {}
    for name, (type_name, *shape) in meta["trees"][part].items():
        dtype = jnp.dtype(type_name)
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                f"{checkpoint} holds {dtype} numbers and JAX is in its 32-bit mode. Set "
                "JAX_ENABLE_X64=1 to read it."
            )
        found[name] = (dtype, tuple(shape))
    return found


def check_sums(
    checkpoint: pathlib.Path, meta: Mapping[str, Any], part: str, sums: Any, tree: Any
) -> None:
    """Raises DamagedError unless `sums`, those of the leaves as read, are those that were saved."""
    altered = [
        name
        for name, ours, theirs in zip(
            _named(tree), np.asarray(sums).tolist(), meta["checksums"][part], strict=True
        )
        if ours != theirs
    ]
    if altered:
        others = f", nor do those of {len(altered) - 1} other leaves" if altered[1:] else ""
        raise DamagedError(
            f"{checkpoint} is damaged: the checksum of {part}/{altered[0]} does not match{others}."
        )


def check_same_leaves(
    checkpoint: pathlib.Path, meta: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Raises ValueError, with the first leaves that differ, unless names and shapes agree.

    Args:
        checkpoint: its directory.
        meta: what `read_meta` gave.
        wanted: trees of shapes and dtypes, by the name of the part.
    """
    problems = []
    for name, abstract in wanted.items():
        saved = {path: tuple(entry[1:]) for path, entry in meta["trees"][name].items()}
        ours = {path: tuple(leaf.shape) for path, leaf in _named(abstract).items()}
        for path in sorted(saved.keys() | ours.keys()):
            if path not in saved:
                problems.append(f"{name}/{path}: missing from the checkpoint")
            elif path not in ours:
                problems.append(f"{name}/{path}: in the checkpoint, unknown to this run")
            elif saved[path] != ours[path]:
                problems.append(
                    f"{name}/{path}: shape {list(saved[path])} in the checkpoint, "
                    f"{list(ours[path])} here"
                )
    if not problems:
        return
    if all(each.startswith("training/") for each in problems):
        way_out = (
            "The parameters fit; the optimizer or the metrics differ. Use the optimizer it was "
            "trained with, or, in a new MODEL_DIR, RestoreCheckpointConfig.optimizer = 'reset'."
        )
    else:
        way_out = (
            "Use the network it was trained with, or choose another MODEL_DIR or path. A run in a "
            "new MODEL_DIR may start from this one, INITIAL_CHECKPOINT_PATH: then equal blocks may "
            "be stacked (UNet.scan) or not, and rules cover what differs."
        )
    more = f"\n  … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    shown = "".join(f"\n  {each}" for each in problems[:_SHOWN])
    raise ValueError(
        f"{checkpoint} does not fit: {len(problems)} leaves differ.{shown}{more}\n{way_out}"
    )


def with_saved_counters(meta: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """`wanted` with the window and the guards' memory as they were saved, whatever was kept then.

    Args:
        meta: what `read_meta` gave.
        wanted: trees of shapes and dtypes, by the name of the part.
    """
    if "training" not in wanted:
        return dict(wanted)
    training = dict(wanted["training"])
    for part in _COUNTERS:
        saved = {
            path.removeprefix(f"{part}/"): jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
            for path, (dtype, *shape) in meta["trees"]["training"].items()
            if path.startswith(f"{part}/")
        }
        del training[part]
        if saved:
            training[part] = _like(saved, wanted["training"][part])
    return {**wanted, "training": training}


def restarted_counters(
    checkpoint: pathlib.Path, loaded: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """`loaded` with zeros for a window or guards' memory that is not the one `wanted`.

    It happens where metrics, bins or the version changed in between, and is warned of.
    """
    training = dict(loaded)
    for part in _COUNTERS:
        given, own = loaded.get(part, {}), wanted[part]
        if {name: each.shape for name, each in given.items()} == {
            name: each.shape for name, each in own.items()
        }:
            training[part] = given
            continue
        logging.warning("%s keeps another %s than this run; it starts anew.", checkpoint, part)
        shardings = {name: getattr(each, "sharding", None) for name, each in own.items()}
        zeros = jax.jit(
            lambda own=own: {name: jnp.zeros(each.shape, each.dtype) for name, each in own.items()},
            out_shardings=shardings,
        )
        training[part] = zeros()
    return training


def _like(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves that are `wanted` as well, as they are wanted: with a dtype and a sharding."""
    return {
        name: wanted[name] if name in wanted and wanted[name].shape == each.shape else each
        for name, each in saved.items()
    }


def _named(tree: Any) -> dict[str, Any]:
    return dict(fingerprints.paths_and_leaves(tree))
