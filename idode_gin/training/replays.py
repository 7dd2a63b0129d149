"""A step that stopped a run, computed again."""

import pathlib
from typing import Any

import jax
from absl import logging

from idode_gin import checks
from idode_gin.checkpoints import saving
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import batches, data
from idode_gin.training import bad_steps, programs, train_step


def command(directory: pathlib.Path, path: pathlib.Path) -> str:
    """What to type, or to write, to replay the step in `path`."""
    config = directory / "config.gin"
    if not config.exists():
        return f"Trainer(replay={str(path)!r})"
    return f"python -m idode_gin.train --gin_file={config} --gin.Trainer.replay=\"'{path}'\""


def replay(
    path: str,
    program: programs.Program,
    loss_fn: train_step.LossFn,
    split: data.ImageSplit,
    dataset: data.DatasetConfig,
    *,
    directory: pathlib.Path,
    config: saving.CheckpointConfig,
    partitioner: PjitPartitioner,
    seed: int,
    num_microbatches: int,
) -> dict[str, Any]:
    """Goes from the last checkpoint before the step up to it, and examines its batch.

    Writes nothing. The batch is the one in the file: change it there to see what it takes.

    Args:
        path: a `bad_step_<step>.npz`.
        program: of the run.
        loss_fn: of the run.
        split: images to go through on the way.
        dataset: their order.
        directory: the run directory.
        config: what the run started from, for a step before its first checkpoint.
        partitioner: devices.
        seed: of the run.
        num_microbatches: parts of a batch.

    Returns:
        `exit_reason` "replayed", `step` and the `report`, if loss and gradient are finite.

    Raises:
        checks.NonFiniteError: with the report, if they are not.
        ValueError: if the file is another run's.
    """
    bad = bad_steps.read(path)
    if bad.seed != seed:
        raise ValueError(f"{path} is of a run with seed {bad.seed}, this one has seed {seed}.")
    saved = [step for step in saving.saved_steps(directory) if step <= bad.step]
    if saved:
        source = str(saving.checkpoint_path(directory, saved[-1]))
        restore = saving.RestoreCheckpointConfig(path=source)
        config = saving.CheckpointConfig(restore=restore)
    nowhere = directory / "replay"  # no directory: nothing of its own to restore, nothing saved
    state, _ = saving.Checkpoints(nowhere, config, {}).restore(program.abstract_state, program.init)
    logging.info("Replaying from step %s up to %s.", int(state.step), bad.step)
    rows, size = partitioner.local_rows(dataset.batch_size), dataset.batch_size
    for step in range(int(state.step), bad.step):
        batch = batches.train_batch(split, dataset, step, rows)
        state, _ = program.step(state, partitioner.put_batch(batch, size))
    own = {name: each[rows] for name, each in bad.batch.items()}
    key = jax.random.fold_in(programs.keys(seed)[1], bad.step)
    is_finite, report = bad_steps.examine(
        loss_fn,
        state.params,
        partitioner.put_batch(own, size),
        key,
        num_microbatches,
        partitioner.replicated,
    )
    report += f"\n  in the run itself: {_seen(bad.health)}"
    title = f"Step {bad.step + 1}, replayed with the batch of {path}:"
    if not is_finite:
        raise checks.NonFiniteError(f"{title}\n{report}")
    if jax.process_index() == 0:
        print(f"{title}\n{report}", flush=True)
    return {"exit_reason": "replayed", "step": bad.step, "report": report}


def _seen(health: dict[str, float]) -> str:
    """What the run saw; an update can overflow though its gradient did not."""
    names = {
        "loss": "loss",
        "grad_norm": "norm of the gradient",
        "param_norm": "norm of the parameters after the update",
        "loss_mean": "running mean of the loss",
    }
    return ", ".join(f"{text} {health[name]:g}" for name, text in names.items() if health.get(name))
