"""Settings that have no effect on a run of so many steps, or keep it from learning."""

from typing import Any

from idode_gin.checkpoints.config import SaveCheckpointConfig
from idode_gin.models import DiffusionODE
from idode_gin.runs import descriptions
from idode_gin.training.optimizers import WARMUP_START, AdamW


def lines(
    model: DiffusionODE, optimizer: Any, save: SaveCheckpointConfig, train_steps: int
) -> list[str]:
    """Return a line for each setting that has no effect on a run that ends at `train_steps`."""
    found, ends = descriptions.warnings(model), f"training ends at step {train_steps}"
    if isinstance(optimizer, AdamW):
        last, every = optimizer.decay_steps, optimizer.accumulation_steps
        if last is not None and last < train_steps:
            found.append(
                f"From step {last} on, the learning rate is {WARMUP_START:g} and nothing is "
                f"learned: AdamW.decay_steps = {last}, and {ends}. Bind AdamW.decay_steps = "
                f"{train_steps}, or None for a constant rate."
            )
        if every > train_steps:
            found.append(
                f"No update is made: {ends}, and AdamW.accumulation_steps = {every}. Bind at most "
                f"{train_steps}."
            )
    if beyond := [step for step in save.checkpoint_steps if step > train_steps]:
        found.append(
            f"SaveCheckpointConfig.checkpoint_steps has steps that are not saved, from "
            f"{min(beyond)} on: {ends}."
        )
    return found
