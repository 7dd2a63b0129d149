"""Comparison of a training run with the checkpoint that it resumes or starts from."""

import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from idode_gin.checkpoints import files, steps_left
from idode_gin.checkpoints import meta as checkpoint_meta
from idode_gin.checkpoints.config import RestoreCheckpointConfig
from idode_gin.models import DiffusionODE
from idode_gin.reports import differences, paths
from idode_gin.reports import files as report_files
from idode_gin.runs import facts as facts_lib
from idode_gin.runs import run_inputs

_DIVERGED = ("non_finite", "loss_spike")
"""Ends of a run after which the newest checkpoint may have to be moved away."""


def check_begun(
    directory: str | pathlib.Path, model: DiffusionODE, restore: RestoreCheckpointConfig
) -> None:
    """Check that a run can be saved in a directory that holds no run of another model.

    Reads descriptions alone. Logs a warning if `restore` names a start that has no effect, or one
    that was trained as another model.

    Raises:
        ValueError: if orbax cannot write to its path, the network of its newest checkpoint differs,
            its output is interpreted differently, or a summary names a checkpoint and there is
            none.
    """
    files.check_path(directory)
    _check_not_emptied(paths.of(directory))
    if (newest := _newest(directory)) is None:
        start = restore.path and files.described(files.candidates(restore.path, restore.mode))
        if start:
            _warn_of_meaning(start[0], start[1]["facts"], model)
        return
    path, meta = newest
    if warning := steps_left.other_start(path, meta["facts"], restore):
        logging.warning("%s", warning)
    _check_meaning(paths.of(directory), meta["facts"], model)
    if model.image_shape is not None:
        params = run_inputs.param_shapes(model, model.image_shape)
        checkpoint_meta.check_same_leaves(path, meta, {"params": params})


def changed_since(
    directory: str | pathlib.Path, facts: Mapping[str, Any], *, is_done: bool
) -> list[str]:
    """Return a warning for each fact that differs from the newest checkpoint of a directory.

    `is_done` says that there is nothing left to train.
    """
    newest = _newest(directory)
    return [] if newest is None else _warnings(newest[1]["facts"], facts, is_done)


def check_resumed(
    directory: pathlib.Path,
    saved: Mapping[str, Any],
    facts: dict[str, Any],
    model: DiffusionODE,
    *,
    is_done: bool,
) -> None:
    """Log a warning for each fact that changed since the checkpoint of `directory` was saved.

    `is_done` says that there is nothing left to train.

    Raises:
        ValueError: if the saved parameters mean something else for this model.
    """
    _check_meaning(directory, saved, model)
    for each in _warnings(saved, facts, is_done):
        logging.warning("%s", each)


def _warn_of_meaning(path: pathlib.Path, saved: Mapping[str, Any], model: DiffusionODE) -> None:
    """Log a warning if a warm start's checkpoint is that of another model."""
    if changes := facts_lib.changed_meaning(saved, model):
        logging.warning(
            "%s was trained as another model: %s. Training starts from its parameters all the "
            "same, and first has to adapt them.",
            path,
            differences.listed(changes),
        )


def _check_not_emptied(directory: pathlib.Path) -> None:
    """Raise ValueError if the checkpoints of a run were removed, and its summary and rows not."""
    found = report_files.read_json(directory / "summary.json") or {}
    reason, known = found.get("exit_reason"), found.get("checkpoint")
    if reason not in (None, *_DIVERGED) and known and not files.saved_steps(directory):
        raise ValueError(
            f"A run continues from its checkpoints, and {directory} has none, though its "
            f"summary.json names {known}. Training would start from scratch, and replace "
            "summary.json and metrics.jsonl. Put the checkpoint back or choose another MODEL_DIR; "
            "or move summary.json away to train from the beginning."
        )


def _newest(directory: str | pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]] | None:
    """Return the newest checkpoint with an intact description, and that; None without one.

    Restoring reports those that are damaged.
    """
    return files.described(files.newest_first(directory))


def _warnings(saved: Mapping[str, Any], facts: Mapping[str, Any], is_done: bool) -> list[str]:
    effect = (
        "This changes nothing, because the run is finished. To train with it, choose another "
        "MODEL_DIR."
        if is_done
        else "Training continues, but no single configuration reproduces this run any more. To "
        "start from the beginning, choose another MODEL_DIR."
    )
    return [f"{each}. {effect}" for each in facts_lib.changed(saved, facts)]


def _check_meaning(directory: pathlib.Path, saved: Mapping[str, Any], model: DiffusionODE) -> None:
    if changes := facts_lib.changed_meaning(saved, model):
        raise ValueError(
            f"{directory} holds a run of another model: {differences.listed(changes)}. Its "
            "parameters mean nothing here. Choose another MODEL_DIR, or the network, objective "
            "and task that the run started with."
        )
