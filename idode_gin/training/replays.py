"""The step that stopped a run: its file, and a replay that examines its batch."""

import dataclasses
import io
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from idode_gin import checks, types
from idode_gin.checkpoints import saving
from idode_gin.feed import batches as batch_lib
from idode_gin.processes import joining
from idode_gin.reports import files, fingerprints, paths
from idode_gin.runs import run_inputs
from idode_gin.training import programs
from idode_gin.training.guards import Watch
from idode_gin.training.setup import Setup
from idode_gin.types import TrainState

_MOST_SHOWN = 8
_UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError),
    zipfile.BadZipFile,
)
_SEEN = {
    "loss": "loss",
    "grad_norm": "norm of the gradient",
    "param_norm": "norm of the parameters after the update",  # may overflow where the others do not
    "loss_mean": "running mean of the loss",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadStep:
    """One step of a run, with everything needed to repeat it from a checkpoint.

    Args:
        step: number of updates before it.
        seed: seed of the run.
        batch: global batch, from `batches.train_batch`.
        health: numbers that the guards judged it by: see `guards.Health`.
    """

    step: int
    seed: int
    batch: dict[str, np.ndarray]
    health: dict[str, float]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write one npz file: `step`, `seed`, `batch/<name>` and `health/<name>`."""
        arrays: dict[str, Any] = {"step": self.step, "seed": self.seed}
        arrays |= {f"batch/{name}": each for name, each in self.batch.items()}
        arrays |= {f"health/{name}": each for name, each in self.health.items()}
        files.write_npz_atomically(path, {name: np.asarray(each) for name, each in arrays.items()})


def read(path: str | os.PathLike[str]) -> BadStep:
    """Read a file that `BadStep.write` wrote.

    Raises:
        ValueError: if there is no such file, or it holds anything else.
    """
    path = paths.of(path)
    try:
        content = io.BytesIO(path.read_bytes())
        with np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return BadStep(
            step=int(arrays.pop("step")),
            seed=int(arrays.pop("seed")),
            batch=_part(arrays, "batch/"),
            health={name: float(each) for name, each in _part(arrays, "health/").items()},
        )
    except _UNREADABLE as error:
        raise ValueError(
            "`replay` must be the path of a bad_step_<step>.npz that a stopped run wrote to "
            f"MODEL_DIR/train, got {path} ({error})."
        ) from error


def save_bad_step(setup: Setup, seed: int, watch: Watch) -> str:
    """Write the batch of the step that stopped the run; return the path of its file."""
    assert watch.bad_step is not None
    path = setup.directory / "train" / f"bad_step_{watch.bad_step}.npz"
    if jax.process_index() == 0:
        step = watch.bad_step - 1
        batch = batch_lib.train_batch(setup.train.split, setup.train.config, step)
        BadStep(step=step, seed=seed, batch=batch, health=watch.health).write(path)
    return str(path)


def replay(
    path: str, setup: Setup, config: saving.CheckpointConfig, seed: int, num_microbatches: int
) -> dict[str, Any]:
    """Train from the last checkpoint before the step up to it, and examine the batch in the file.

    Writes nothing. To find what makes the step fail, edit the batch in the file. `config` is
    what the run started from, for a step before its first checkpoint.

    Returns:
        `exit_reason` "replayed", `step` and the `report`, if loss and gradient are finite.

    Raises:
        checks.NonFiniteError: with the report, if they are not.
        ValueError: if the file belongs to another run.
    """
    bad = read(path)
    if bad.seed != seed:
        raise ValueError(
            f"A step is replayed with the seed of its run: {path} has seed {bad.seed}, this run "
            f"has seed {seed}. Bind RANDOM_SEED = {bad.seed}, or name a file of this run."
        )
    _check_batch(path, bad.batch, setup)
    state = _state_before(bad.step, setup, config)
    if int(state.step) > bad.step:
        raise ValueError(
            f"A step is replayed from a checkpoint before it, and {config.restore.path} is at step "
            f"{int(state.step)} now, beyond step {bad.step + 1} of {path}. Bind "
            "INITIAL_CHECKPOINT_PATH to the checkpoint_<step> that the run started from."
        )
    logging.info("Replaying from step %s up to %s.", int(state.step), bad.step)
    for step in range(int(state.step), bad.step):
        state, _ = setup.program.step(state, setup.train.train_batch(step))
    key = jax.random.fold_in(programs.keys(seed)[1], bad.step)
    is_finite, report = _examine(setup, state.params, bad.batch, key, num_microbatches)
    seen = [f"{text} {bad.health[name]:g}" for name, text in _SEEN.items() if bad.health.get(name)]
    text = f"Step {bad.step + 1}, replayed with the batch of {path}:\n{report}"
    text += f"\n  in the run itself: {', '.join(seen)}"
    if not is_finite:
        raise checks.NonFiniteError(text)
    if jax.process_index() == 0:
        print(text, flush=True)
    return {"exit_reason": "replayed", "step": bad.step, "report": text.partition("\n")[2]}


def _check_batch(path: str, batch: types.Batch, setup: Setup) -> None:
    """Raise ValueError unless `batch` is a global one of this run."""
    images = setup.train
    blank = run_inputs.blank_batch(setup.model, images.split.image_shape, images.config.batch_size)
    expected = {name: each.shape for name, each in blank.items()}
    found = {name: np.shape(each) for name, each in batch.items()}
    if found != expected:
        raise ValueError(
            f"The batch in {path} must have the arrays and shapes of this run, {expected}, got "
            f"{found}. Bind the BATCH_SIZE that the run had at that step."
        )


def _examine(
    setup: Setup, params: types.Params, batch: types.Batch, key: types.PRNGKey, parts: int
) -> tuple[bool, str]:
    """Compute loss and gradient of a global batch in microbatches, on all processes.

    Returns:
        Whether loss and gradient are finite, and a report of where they are not.
    """
    images, size = setup.train, setup.train.config.batch_size
    placed = images.put({name: each[images.rows] for name, each in batch.items()})

    def look(params: types.Params, batch: types.Batch, start: jax.Array) -> Any:
        part = {  # every parts-th image from `start` on, as in training
            name: each.reshape(size // parts, parts, *each.shape[1:])[:, start]
            for name, each in batch.items()
        }
        gradient = jax.value_and_grad(setup.model.loss_fn, has_aux=True)
        (loss, metrics), grads = gradient(params, part, key, size)
        largest = jax.tree.map(lambda each: jnp.max(jnp.abs(each)), grads)
        return loss, {"index": part["index"], **metrics}, largest

    jitted = joining.together(jax.jit(look, out_shardings=images.partitioner.replicated))
    found = [jax.device_get(jitted(params, placed, np.int32(start))) for start in range(parts)]
    loss = float(np.mean([each[0] for each in found]))
    values = {name: np.concatenate([each[1][name] for each in found]) for name in found[0][1]}
    index = values.pop("index")
    lines = [f"loss {loss}, mean over the batch"]
    for name, each in sorted(values.items()):
        if not np.isfinite(each).all():
            bad = index[~np.isfinite(each)].tolist()
            lines.append(f"{name} is not finite for {len(bad)} of {size} images: {_some(bad)}")
    worst = jax.tree.map(lambda *each: np.max(each), *[each[2] for each in found])
    leaves = dict(fingerprints.paths_and_leaves(worst))
    bad_leaves = [name for name, each in leaves.items() if not np.isfinite(each)]
    lines.append(f"gradient is not finite in {len(bad_leaves)} of {len(leaves)} leaves")
    lines[-1] += f": {_some(bad_leaves)}" if bad_leaves else ""
    name = max(leaves, key=lambda name: np.nan_to_num(leaves[name], nan=-1, posinf=-1))
    lines.append(f"largest finite entry of the gradient: {leaves[name]:.3g} in {name}")
    is_finite = not bad_leaves and bool(np.isfinite(loss))
    return is_finite, "\n".join(f"  {line}" for line in lines)


def _state_before(step: int, setup: Setup, config: saving.CheckpointConfig) -> TrainState:
    """Restore the run's last checkpoint up to `step`; without one, begin as the run did."""
    saved = [each for each in saving.saved_steps(setup.directory) if each <= step]
    if saved:
        source = str(saving.checkpoint_path(setup.directory, saved[-1]))
        config = saving.CheckpointConfig(restore=saving.RestoreCheckpointConfig(path=source))
    # A folder that does not exist: it holds no checkpoint that would come first, and stays empty.
    checkpoints = saving.Checkpoints(setup.directory / "replay", config, setup.facts)
    program = setup.program
    return checkpoints.restore(program.abstract_state, program.init, program.init_optimizer)[0]


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): each for k, each in arrays.items() if k.startswith(prefix)}


def _some(names: list[Any]) -> str:
    more = ", …" if len(names) > _MOST_SHOWN else ""
    return ", ".join(map(str, names[:_MOST_SHOWN])) + more
