"""The files of a run directory beside its checkpoints: metrics, summary, descriptions, plots."""

import dataclasses
from typing import Any

import jax
import numpy as np

from idode_gin import types
from idode_gin.feed import batches as batch_lib
from idode_gin.reports import files, metrics, plots
from idode_gin.reports.wandb_writer import WandB
from idode_gin.training.setup import Setup, Start

INTEGRAND_POINTS = 41


class RunDirectory:
    """The files of a run directory, a context. Only process 0 writes.

    Rows of steps after the start are removed; training writes them again.
    """

    def __init__(
        self, setup: Setup, start: Start, *, tensorboard: bool, wandb: WandB | None
    ) -> None:
        self._setup, self._is_writer = setup, jax.process_index() == 0
        self.log = metrics.MetricsLog(
            setup.directory / "metrics.jsonl",
            keep_up_to=start.step if start.is_resumed else -1,
            writes=self._is_writer,
        )
        eval_name = None if setup.eval is None else setup.eval.split.name
        event_folder = setup.directory if tensorboard and self._is_writer else None
        self._writers: list[Any] = [metrics.TensorBoard(event_folder, eval_name)]
        if wandb is not None and self._is_writer:
            self._writers.append(wandb.open(setup.directory, setup.facts))

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()

    def bpd(self, step: int) -> float | None:
        """Return the evaluated bits per dimension of a step; None if it was not evaluated."""
        return (self.log.row(step) or {}).get("eval/bpd")

    def write_row(self, step: int, row: metrics.Row) -> None:
        """Add a row of metrics and wait until it is on disk."""
        written = self.log.write(step, row)
        for writer in self._writers:
            writer.write(step, written)

    def write_text(self, name: str, text: str) -> None:
        """Write a file atomically."""
        if self._is_writer:
            files.write_atomically(self._setup.directory / name, text)

    def plot(self, params: types.Params) -> None:
        """Plot the bound by step, its integrand on the first images, and the loss by gamma."""
        if not self._is_writer:
            return
        model, folder = self._setup.model, self._setup.directory / "train"
        plots.plot_bpd_curve(self.log.rows, folder / "bpd.png")
        low, high = model.time.gamma_min, model.time.gamma_max
        if any("train/loss_by_gamma" in row for row in self.log.rows):
            plots.plot_loss_by_gamma(self.log.rows, low, high, folder / "loss_by_gamma.png")
        # A training batch, which has no padding, of the first images of the split.
        images = self._setup.eval or self._setup.train
        split = dataclasses.replace(images.split, augmentation=None)
        config = dataclasses.replace(images.config, shuffle=False)
        batch = batch_lib.train_batch(split, config, 0)
        gammas = np.linspace(low, high, INTEGRAND_POINTS)
        params, key = jax.device_get(params), jax.random.key(0)
        values = jax.jit(model.integrand)(params, batch, key, gammas)
        plots.plot_integrand(gammas, np.asarray(values), folder / "integrand.png")
