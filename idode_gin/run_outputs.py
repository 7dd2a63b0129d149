"""What a training run leaves behind: rows of metrics, a summary, a description, pictures."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from idode_gin import types
from idode_gin.models import DiffusionODE
from idode_gin.runtime import batches, data, files, fingerprints, metrics, plots
from idode_gin.runtime.train_state import TrainState

INTEGRAND_POINTS = 41


class RunDirectory:
    """The files of a run directory, all but its checkpoints. Only the first process writes.

    Args:
        directory: the run directory.
        keep_up_to: rows of later steps are removed; -1 removes all.
        tensorboard: write event files.
        eval_name: the task evaluated on, if there is one.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep_up_to: int,
        tensorboard: bool,
        eval_name: str | None,
    ) -> None:
        self._directory = directory
        self._is_writer = jax.process_index() == 0
        self.log = metrics.MetricsLog(
            directory / "metrics.jsonl", keep_up_to=keep_up_to, writes=self._is_writer
        )
        writes_events = tensorboard and self._is_writer
        self._board = metrics.TensorBoard(directory if writes_events else None, eval_name)

    def close(self) -> None:
        """Closes the event files."""
        self._board.close()

    def write_row(self, step: int, row: metrics.Row) -> None:
        """Adds a row of metrics, and waits until it is on disk."""
        self._board.write(step, self.log.write(step, row))

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
        """Draws the curve of the bound, and its integrand on the first images of `split`."""
        if not self._is_writer:
            return
        folder = self._directory / "train"
        plots.plot_bpd_curve(self.log.rows, folder / "bpd.png")
        # A batch as in training, which has no padding, and the first images of the split.
        split = dataclasses.replace(split, augmentation=None)
        batch = batches.train_batch(split, dataclasses.replace(dataset, shuffle=False), 0)
        gammas = np.linspace(model.time.gamma_min, model.time.gamma_max, INTEGRAND_POINTS)
        params, key = jax.device_get(params), jax.random.key(0)
        values = jax.jit(model.integrand)(params, batch, key, gammas)
        plots.plot_integrand(gammas, np.asarray(values), folder / "integrand.png")


def outcome(state: TrainState, *, is_finite: bool) -> dict[str, Any]:
    """What summary.json says of the parameters; no checksums of a state that is not finite."""
    return {
        "params_sha256": fingerprints.sha256(state.params) if is_finite else None,
        "ema_sha256": fingerprints.sha256(state.ema) if is_finite else None,
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    }
