"""Checkpoints of ours as files of the published i-DODE program, the way back of `official`."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from idode_gin import types
from idode_gin.checkpoints import plain_trees
from idode_gin.interop import official, our_checkpoints
from idode_gin.networks import stacking
from idode_gin.networks.unet import UNet
from idode_gin.reports import files as report_files
from idode_gin.runs import facts as facts_lib

NAME = "ckpt-1.flax"


def save(source: str | pathlib.Path, output: str | pathlib.Path) -> pathlib.Path:
    """Write a checkpoint of ours as one of the published program, and return the file's path.

    It holds the step, the parameters, their moving average and Adam's moments, bit for bit.

    Args:
        source: a run directory (its newest intact checkpoint) or a `checkpoint_<step>` in one.
        output: folder for `ckpt-1.flax`.

    Raises:
        ValueError: if the source holds no checkpoint of ours, it is damaged, or the published
            program has no place for a part of it; or if `output` holds such files.
        OSError: if the output cannot be written.
    """
    folder = pathlib.Path(output)
    if found := sorted(folder.glob("ckpt-*.flax")):
        raise ValueError(f"{folder} already contains {found[0].name}. Use another folder.")
    meta, parts = our_checkpoints.read(source, ("params", "ema", "training"))
    params = _unrolled(parts["params"])
    _check_network(official.network_of(official.to_official(params)), meta["facts"])
    optimizer = parts["training"].get("opt_state", {})
    if np.any(optimizer.get("mini_step", 0)):
        raise ValueError(
            f"{source} must not stand between two updates: it holds an accumulated gradient, which "
            "the published program has no place for. Convert a checkpoint of another step."
        )
    adam = official.find_adam(optimizer)
    if adam is None or set(adam) != {"count", "mu", "nu"}:
        raise ValueError(
            "The published program resumes from Adam's moments, and the state of the optimizer in "
            f"{source} has none, or more. Convert a checkpoint that was trained with AdamW."
        )
    content = official.serialized(
        step=int(meta["step"]),
        params=params,
        ema=_unrolled(parts["ema"]),
        count=adam["count"],
        mu=_unrolled(adam["mu"]),
        nu=_unrolled(adam["nu"]),
    )
    try:
        report_files.write_atomically(folder / NAME, content)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(plain_trees.not_written(folder, reason)) from error
    return folder / NAME


def _check_network(published: UNet, facts: Mapping[str, Any]) -> None:
    """Raise ValueError unless ours computes what the published network with these leaves does."""
    theirs = facts_lib.described_network(published)
    wrong = {k: facts[k] for k, value in theirs.items() if facts.get(k, value) != value}
    if wrong:
        listed = ", ".join(f"{name} = {value}" for name, value in wrong.items())
        raise ValueError(
            f"The published program computes another network with these parameters: it has no "
            f"{listed}."
        )


def _unrolled(params: Mapping[str, Any]) -> types.Params:
    """Return the parameters with numbered blocks, which those of `UNet.scan` are not."""
    return stacking.unrolled(dict(params)) if "up" in params else dict(params)
