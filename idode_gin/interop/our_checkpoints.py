"""Read checkpoints of ours as plain trees, without a model."""

import pathlib
from collections.abc import Sequence
from typing import Any

from flax import traverse_util

from idode_gin.checkpoints import files, meta, reading


def read(source: str | pathlib.Path, parts: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the description of a checkpoint of ours, and the trees of some of its parts.

    Args:
        source: a run directory (its newest intact checkpoint) or a `checkpoint_<step>` in one.
        parts: some of "params", "ema" and "training".

    Raises:
        ValueError: if there is none, or it is damaged.
    """

    def load(found: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
        described = meta.read_meta(found)
        leaves = {each: reading.read_leaves(found, described, each, {}) for each in parts}
        return described, {k: traverse_util.unflatten_dict(v, sep="/") for k, v in leaves.items()}

    return files.first_whole(source, None, load)
