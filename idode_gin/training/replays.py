"""Repeating the step that stopped a run, to examine its batch."""

from typing import Any

import jax
from absl import logging

from idode_gin import checks
from idode_gin.checkpoints import saving
from idode_gin.feed import batches as batch_lib
from idode_gin.training import bad_steps, programs
from idode_gin.training.guards import Watch
from idode_gin.training.setup import Setup

_SHOWN = {
    "loss": "loss",
    "grad_norm": "norm of the gradient",
    "param_norm": "norm of the parameters after the update",  # may overflow where the others do not
    "loss_mean": "running mean of the loss",
}


def keep(setup: Setup, seed: int, watch: Watch) -> str:
    """Write the batch of the step that stopped the run; return the command that replays it."""
    assert watch.bad_step is not None
    path = setup.directory / "train" / f"bad_step_{watch.bad_step}.npz"
    if jax.process_index() == 0:
        step = watch.bad_step - 1
        batch = batch_lib.train_batch(setup.train.split, setup.train.config, step)
        bad_steps.BadStep(step=step, seed=seed, batch=batch, health=watch.health).write(path)
    config = setup.directory / "config.gin"
    if not config.exists():
        return f"Trainer(replay={str(path)!r})"
    return f"python -m idode_gin.train --gin_file={config} --gin.Trainer.replay=\"'{path}'\""


def replay(
    path: str, setup: Setup, config: saving.CheckpointConfig, seed: int, num_microbatches: int
) -> dict[str, Any]:
    """Train from the last checkpoint before the step up to it, and examine the batch in the file.

    Writes nothing. To find what makes the step fail, edit the batch in the file.

    Args:
        path: a `bad_step_<step>.npz`.
        setup: the run.
        config: what the run started from, for a step before its first checkpoint.
        seed: seed of the run.
        num_microbatches: parts of a batch.

    Returns:
        `exit_reason` "replayed", `step` and the `report`, if loss and gradient are finite.

    Raises:
        checks.NonFiniteError: with the report, if they are not.
        ValueError: if the file belongs to another run.
    """
    bad = bad_steps.read(path)
    if bad.seed != seed:
        raise ValueError(
            f"A step is replayed with the seed of its run: {path} has seed {bad.seed}, this run "
            f"has seed {seed}. Bind RANDOM_SEED = {bad.seed}, or name a file of this run."
        )
    state = _state_before(bad.step, setup, config)
    logging.info("Replaying from step %s up to %s.", int(state.step), bad.step)
    images, program = setup.train, setup.program
    for step in range(int(state.step), bad.step):
        state, _ = program.step(state, images.train_batch(step))
    is_finite, report = bad_steps.examine(
        setup.model.loss_fn,
        state.params,
        images.put({name: each[images.rows] for name, each in bad.batch.items()}),
        jax.random.fold_in(programs.keys(seed)[1], bad.step),
        num_microbatches,
        images.partitioner.replicated,
    )
    seen = [f"{text} {bad.health[name]:g}" for name, text in _SHOWN.items() if bad.health.get(name)]
    text = f"Step {bad.step + 1}, replayed with the batch of {path}:\n{report}"
    text += f"\n  in the run itself: {', '.join(seen)}"
    if not is_finite:
        raise checks.NonFiniteError(text)
    if jax.process_index() == 0:
        print(text, flush=True)
    return {"exit_reason": "replayed", "step": bad.step, "report": text.partition("\n")[2]}


def _state_before(step: int, setup: Setup, config: saving.CheckpointConfig) -> Any:
    """Restore the run's last checkpoint up to `step`; without one, begin as the run did."""
    saved = [each for each in saving.saved_steps(setup.directory) if each <= step]
    if saved:
        source = str(saving.checkpoint_path(setup.directory, saved[-1]))
        config = saving.CheckpointConfig(restore=saving.RestoreCheckpointConfig(path=source))
    # A folder that does not exist: it holds no checkpoint that would come first, and stays empty.
    checkpoints = saving.Checkpoints(setup.directory / "replay", config, {})
    return checkpoints.restore(setup.program.abstract_state, setup.program.init)[0]
