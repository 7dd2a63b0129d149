"""The JSON description in a checkpoint: names, shapes, dtypes and checksums of its leaves.

It identifies, leaf by leaf, a checkpoint of another architecture or a damaged one, independently of
the version of the library that wrote the arrays.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin.reports import fingerprints

FORMAT = 1
_SHOWN = 5
_COUNTERS = ("training/window/", "training/guard/")
"""Leaves that may differ from those of this run and then restart at zero."""


class DamagedError(ValueError):
    """A file of a checkpoint is missing, truncated or altered."""


def describe(
    parts: Mapping[str, Any], sums: Mapping[str, Any], *, step: int, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the JSON description of `parts`.

    Args:
        parts: trees of arrays, by the name of the directory each is saved in.
        sums: `fingerprints.checksums` of each.
        step: step of the training run.
        facts: facts about the run.
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
    """Read the description that `describe` made when the checkpoint was written.

    Raises:
        DamagedError: if it cannot be read.
        ValueError: if another version of this library wrote it.
    """
    path = checkpoint / "meta" / "metadata"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        version = meta["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(
            f"{checkpoint} is not a complete checkpoint of this library: cannot read "
            f"meta/metadata ({error})."
        ) from error
    if version != FORMAT:
        raise ValueError(
            f"{checkpoint} has format {version}; this version of idode_gin reads format "
            f"{FORMAT}. Read it with the version that wrote it."
        )
    return meta


def saved_leaves(
    checkpoint: pathlib.Path, meta: Mapping[str, Any], part: str
) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return dtype and shape of every leaf of a part, by name.

    Raises:
        ValueError: if a leaf is float64 and JAX is in its 32-bit mode.
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
    """Raise DamagedError if the checksums of leaves as read differ from those saved."""
    altered = [
        name
        for name, ours, theirs in zip(
            _named(tree), np.asarray(sums).tolist(), meta["checksums"][part], strict=True
        )
        if ours != theirs
    ]
    if altered:
        others = f", nor those of {len(altered) - 1} other leaves" if altered[1:] else ""
        raise DamagedError(
            f"{checkpoint} is damaged: the checksum of {part}/{altered[0]} does not match{others}."
        )


def check_same_leaves(
    checkpoint: pathlib.Path, meta: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Check that names and shapes of leaves match, but for the metrics window and guard state.

    Args:
        checkpoint: its directory.
        meta: description from `read_meta`.
        wanted: trees of shapes and dtypes, by the name of the part.

    Raises:
        ValueError: if they differ; lists the first leaves that do.
    """
    problems = []
    for name, abstract in wanted.items():
        saved = {path: tuple(entry[1:]) for path, entry in meta["trees"][name].items()}
        ours = {path: tuple(leaf.shape) for path, leaf in _named(abstract).items()}
        for path in sorted(saved.keys() | ours.keys()):
            if f"{name}/{path}".startswith(_COUNTERS):
                continue
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
            "The parameters match; the optimizer or the metrics differ. Use the optimizer of the "
            "checkpoint or, in a new MODEL_DIR, RestoreCheckpointConfig.optimizer = 'reset'."
        )
    else:
        way_out = (
            "Use the network of the checkpoint, or another MODEL_DIR or path. A run in a new "
            "MODEL_DIR may start from this checkpoint (INITIAL_CHECKPOINT_PATH): equal blocks may "
            "then be stacked (UNet.scan) or not, and rules cover other differences."
        )
    more = f"\n  … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    shown = "".join(f"\n  {each}" for each in problems[:_SHOWN])
    raise ValueError(
        f"{checkpoint} does not fit: {len(problems)} leaves differ.{shown}{more}\n{way_out}"
    )


def _named(tree: Any) -> dict[str, Any]:
    return dict(fingerprints.paths_and_leaves(tree))
