"""What a training run leaves behind: rows of metrics, a summary, a description, pictures."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from idode_gin import types
from idode_gin.feed import batches, data
from idode_gin.models import DiffusionODE
from idode_gin.reports import files, fingerprints, metrics, plots
from idode_gin.reports.wandb_writer import WandB
from idode_gin.training import guards, train_state
from idode_gin.training.optimizers import AdamW
from idode_gin.types import TrainState

INTEGRAND_POINTS = 41


class RunDirectory:
    """The files of a run directory, all but its checkpoints. Only the first process writes.

    Args:
        directory: the run directory.
        keep_up_to: rows of later steps are removed; -1 removes all.
        tensorboard: write event files.
        eval_name: the task evaluated on, if there is one.
        wandb: where else the rows go.
        facts: of the run, for `wandb`.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep_up_to: int,
        tensorboard: bool,
        eval_name: str | None,
        wandb: WandB | None,
        facts: Mapping[str, Any],
    ) -> None:
        self._directory = directory
        self._is_writer = jax.process_index() == 0
        self.log = metrics.MetricsLog(
            directory / "metrics.jsonl", keep_up_to=keep_up_to, writes=self._is_writer
        )
        writes_events = tensorboard and self._is_writer
        self._writers: list[Any] = [
            metrics.TensorBoard(directory if writes_events else None, eval_name)
        ]
        if wandb is not None and self._is_writer:
            self._writers.append(wandb.open(directory, facts))

    def close(self) -> None:
        """Closes event files and the like."""
        for writer in self._writers:
            writer.close()

    def write_row(self, step: int, row: metrics.Row) -> None:
        """Adds a row of metrics, and waits until it is on disk."""
        written = self.log.write(step, row)
        for writer in self._writers:
            writer.write(step, written)

    def write_text(self, name: str, text: str) -> None:
        """Writes a file whole or not at all."""
        if self._is_writer:
            files.write_atomically(self._directory / name, text)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes summary.json."""
        self.write_text("summary.json", json.dumps(summary, indent=2) + "\n")

    def plot(
        self,
        model: DiffusionODE,
        params: types.Params,
        split: data.ImageSplit,
        dataset: data.DatasetConfig,
    ) -> None:
        """Draws the bound, its integrand on the first images of `split`, and the loss by gamma."""
        if not self._is_writer:
            return
        folder = self._directory / "train"
        plots.plot_bpd_curve(self.log.rows, folder / "bpd.png")
        low, high = model.time.gamma_min, model.time.gamma_max
        if any("train/loss_by_gamma" in row for row in self.log.rows):
            plots.plot_loss_by_gamma(self.log.rows, low, high, folder / "loss_by_gamma.png")
        # A batch as in training, which has no padding, and the first images of the split.
        split = dataclasses.replace(split, augmentation=None)
        batch = batches.train_batch(split, dataclasses.replace(dataset, shuffle=False), 0)
        gammas = np.linspace(low, high, INTEGRAND_POINTS)
        params, key = jax.device_get(params), jax.random.key(0)
        values = jax.jit(model.integrand)(params, batch, key, gammas)
        plots.plot_integrand(gammas, np.asarray(values), folder / "integrand.png")


def train_row(state: TrainState, optimizer: Any) -> metrics.Row:
    """Means since the last log, and the learning rate of the last update, where it is known."""
    row = {f"train/{name}": each for name, each in train_state.window_means(state).items()}
    if isinstance(optimizer, AdamW):
        updates = int(state.step) - int(guards.num_bad(state.guard))
        row["train/learning_rate"] = float(optimizer.learning_rate_at(max(updates - 1, 0)))
    return row


def advice(checkpoint: str | None, would_skip: bool) -> str:
    """What to do about a run that a guard has stopped.

    Args:
        checkpoint: the last good one, if there is one.
        would_skip: whether there is a rule that leaves such a step out.
    """
    other_rule = "; or have such steps left out: --gin_file=gin_configs/guards/skip.gin"
    good = f"The last good checkpoint is {checkpoint}"
    way_out = f" from INITIAL_CHECKPOINT_PATH = {checkpoint!r}" if checkpoint else ""
    return (
        f"{good if checkpoint else 'No checkpoint had been saved yet'}. Lower the learning rate, "
        f"lengthen its warm-up or set clip_norm, and start again in a new MODEL_DIR{way_out}"
        f"{other_rule if would_skip else ''}."
    )


def outcome(
    state: TrainState, whole: Callable[[types.Params], types.Params], *, is_finite: bool
) -> dict[str, Any]:
    """What summary.json says of the parameters.

    Args:
        state: of the run.
        whole: makes arrays whole on every device; every process calls it.
        is_finite: there are no checksums of a state that is not.
    """
    return {
        "params_sha256": fingerprints.sha256(whole(state.params)) if is_finite else None,
        "ema_sha256": fingerprints.sha256(whole(state.ema)) if is_finite else None,
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    }
