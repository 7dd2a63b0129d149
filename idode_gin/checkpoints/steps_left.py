"""Find where a run begins and ends, from the names and descriptions of checkpoints alone."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from idode_gin import checks
from idode_gin.checkpoints import files, reading, warm_start
from idode_gin.checkpoints.config import RestoreCheckpointConfig
from idode_gin.reports import paths

FIRST_STEP = "first_step"
"""Fact of a run: the step that it started at."""
STARTED_FROM = "started_from"
"""Fact of a run: the checkpoint of another run that it started from; None from scratch."""


def check(
    directory: str | pathlib.Path, restore: RestoreCheckpointConfig, train_steps: int
) -> None:
    """Check, before anything is written, that a warm start leaves something to train.

    A run that resumes its own checkpoint and damaged checkpoints are left to restoring.

    Raises:
        ValueError: if there is no checkpoint to start from, or the step that the warm start keeps
            is `train_steps` or beyond.
    """
    if restore.path is None or files.saved_steps(directory):
        return
    found = files.described(files.candidates(restore.path, restore.mode))
    if restore.step == warm_start.RESTORE and found is not None:
        check_step(found[0], found[1]["step"], train_steps)


def first_step(directory: str | pathlib.Path, restore: RestoreCheckpointConfig) -> int | None:
    """Return the step that the run in `directory` started at, or will start at.

    None for checkpoints that do not hold it: converted ones, and those of earlier versions.
    """
    if own := files.described(files.newest_first(directory)):
        found = own[1]["facts"].get(FIRST_STEP)
        return found if type(found) is int else None
    if restore.path is None or restore.step != warm_start.RESTORE:
        return 0
    start = files.described(files.candidates(restore.path, restore.mode))
    return 0 if start is None else int(start[1]["step"])


def other_start(
    newest: pathlib.Path, facts: Mapping[str, Any], restore: RestoreCheckpointConfig
) -> str | None:
    """Return a warning if `restore` names a start that a run with these facts did not have.

    `newest` is the run's newest checkpoint. Facts that do not hold the start give no warning.
    """
    if restore.path is None or STARTED_FROM not in facts:
        return None
    started_from, given = facts[STARTED_FROM], paths.of(restore.path).resolve()
    if started_from is not None and _is_or_holds(given, paths.of(started_from)):
        return None
    if _is_or_holds(given, newest):
        idle = [each for each in restore.exceptions if each != "mode"]
        if not idle:
            return None
        return (
            f"INITIAL_CHECKPOINT_PATH names the run in MODEL_DIR itself, which resumes from "
            f"{newest.name} as it is: RestoreCheckpointConfig has no effect ({', '.join(idle)}). "
            "To start again from there, choose another MODEL_DIR."
        )
    return (
        f"INITIAL_CHECKPOINT_PATH = {restore.path!r} has no effect: {newest.parent} holds a run "
        f"that started from {started_from or 'scratch'}, and its newest checkpoint, {newest.name}, "
        "is taken. To start from the path given, choose another MODEL_DIR."
    )


def _is_or_holds(given: Any, checkpoint: Any) -> bool:
    """Return True if `given` is the checkpoint or the run directory that holds it."""
    whole = checkpoint.resolve()
    return given in (whole, whole.parent)


def last_step(
    directory: str | pathlib.Path,
    restore: RestoreCheckpointConfig,
    total_steps: int,
    relative_steps: int | None,
) -> int:
    """Return the step at which training ends: `relative_steps` after its first, or `total_steps`.

    Raises:
        ValueError: if `relative_steps` is not positive, or the first step is not known.
    """
    if relative_steps is None:
        return total_steps
    checks.check_integer("relative_steps", relative_steps, at_least=1)
    first = first_step(directory, restore)
    if first is None:
        raise ValueError(
            f"`relative_steps` counts from the step that a run started at, and the checkpoints of "
            f"{directory} do not hold it: they were converted, or written by an earlier version. "
            "Bind TRAIN_STEPS, and TRAIN_STEPS_RELATIVE = None."
        )
    return first + relative_steps


def settled(
    directory: str | pathlib.Path, restore: RestoreCheckpointConfig
) -> RestoreCheckpointConfig:
    """Return the config of a warm start with the one checkpoint that is newest now.

    A run that is trained meanwhile adds checkpoints. Process 0 chooses for all.
    """
    path = restore.path
    if path is None or restore.step != warm_start.RESTORE:
        return restore

    def newest() -> list[pathlib.Path]:
        if files.saved_steps(directory):
            return []
        found = files.described(files.candidates(path, restore.mode))
        return [] if found is None else [found[0]]

    chosen = reading.listed(newest)
    return dataclasses.replace(restore, path=str(chosen[0]), mode=None) if chosen else restore


def check_step(checkpoint: pathlib.Path, step: int, train_steps: int) -> None:
    """Raise ValueError if a warm start that keeps `step` leaves nothing to train."""
    if step >= train_steps:
        raise ValueError(
            f"A warm start must leave something to train, but it keeps the step of {checkpoint}, "
            f"{step}, and training ends at TRAIN_STEPS = {train_steps}. To count from zero, "
            "bind --gin.RestoreCheckpointConfig.step=\"'reset'\" (gin_configs/runs/finetune.gin "
            f"does); to continue counting, bind a TRAIN_STEPS above {step}."
        )


def nothing(directory: str | pathlib.Path, step: int, train_steps: int) -> str:
    """Return the message for a run that is at `step`, which is `train_steps` or beyond."""
    reached = "as asked" if step == train_steps else f"more than TRAIN_STEPS = {train_steps} asks"
    shorter = "" if step == train_steps else "; for a shorter run, another MODEL_DIR"
    return (
        f"Nothing left to train: {directory} is at step {step}, {reached}. To continue, bind a "
        f"larger TRAIN_STEPS (or TRAIN_STEPS_RELATIVE, if it is not None){shorter}."
    )


def instead(directory: str | pathlib.Path, train_steps: int) -> str | None:
    """Return the message of `nothing` if a run directory has nothing left to train, else None."""
    found = files.described(files.newest_first(directory))
    step = 0 if found is None else found[1]["step"]
    return nothing(directory, step, train_steps) if step >= train_steps else None
