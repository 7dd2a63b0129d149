"""Check that a run has steps left, from the names and descriptions of checkpoints alone."""

import pathlib

from idode_gin.checkpoints import files, warm_start
from idode_gin.checkpoints.config import RestoreCheckpointConfig


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
        f"larger TRAIN_STEPS{shorter}."
    )


def instead(directory: str | pathlib.Path, train_steps: int) -> str | None:
    """Return that message for a run directory with nothing left to train, else None."""
    found = files.described(files.newest_first(directory))
    step = 0 if found is None else found[1]["step"]
    return nothing(directory, step, train_steps) if step >= train_steps else None
