"""Reporting and saving of a run: its start, rows of metrics, summary and plots."""

import contextlib
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, final

import jax

from idode_gin import checks, types
from idode_gin.checkpoints import steps_left
from idode_gin.checkpoints.files import checkpoint_path
from idode_gin.checkpoints.saving import Checkpoints
from idode_gin.feed import batches as batch_lib
from idode_gin.processes import exchange, joining
from idode_gin.processes.preemption import StopRequest
from idode_gin.reports import files, fingerprints, metrics, plots, progress
from idode_gin.reports.wandb_writer import WandB
from idode_gin.runs import averaging, descriptions, integrand, run_lock
from idode_gin.training import early_stopping, guards, replays, train_state
from idode_gin.training.meters import Meters
from idode_gin.training.optimizers import AdamW
from idode_gin.training.setup import Setup, Start
from idode_gin.training.validation import Validation
from idode_gin.types import TrainState

PLOT_PERIOD = 60.0
"""Seconds between two plots of the rows during training."""


@final
@dataclasses.dataclass(kw_only=True)
class Saver:
    """Saves `state`, the last complete state of a run.

    The loop sets it after every step. A signal handler saves it from another thread, though never
    during a step, which donates it.
    """

    checkpoints: Checkpoints
    watch: guards.Watch
    meters: Meters
    state: TrainState

    def save(self) -> None:
        """Save the state, once `watch` has checked every step before it; raise what it raises."""
        self.watch.drain()
        saving = progress.phase(f"saving the state of step {int(self.state.step)}")
        with saving, self.meters.clock.inside("checkpoint"):
            exchange.from_first(lambda: run_lock.check(self.checkpoints.directory))
            self.meters.log.flush()
            self.checkpoints.save(self.state)

    def wait(self) -> None:
        """Wait for the steps under way: a process that ends while XLA computes on a CPU crashes.

        With several processes it does not wait, since one of them may have died in a step.
        """
        if jax.process_count() == 1:
            with contextlib.suppress(Exception):
                jax.block_until_ready(self.state)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Reporter:
    """Reports the state that `saver` holds, in the run directory and on the terminal."""

    setup: Setup
    log: metrics.MetricsLog
    writers: Sequence[Any]
    meters: Meters
    saver: Saver
    validation: Validation
    optimizer: Any
    log_period: int
    plot_due: Callable[[], bool] = dataclasses.field(default_factory=lambda: due_every(PLOT_PERIOD))
    is_first_row: Callable[[], bool] = dataclasses.field(
        default_factory=lambda: due_every(math.inf)
    )

    def announce(self, start: Start) -> None:
        """Print where training starts from, and write the descriptions of model and warm start."""
        setup, restored, say = self.setup, start.restored, self.meters.bar.say
        axes = setup.model.logical_axes(setup.train.split.image_shape)
        text = descriptions.describe(setup.model, start.state.params, axes)
        self._write("model-info.txt", text)
        if start.step >= setup.train_steps:
            say(steps_left.nothing(setup.directory, start.step, setup.train_steps))
            return
        source = "scratch" if restored is None else f"{restored.path}, step {start.step},"
        say(f"Training from {source} to step {setup.train_steps} in {setup.directory}.")
        if classes := setup.train.split.classes:
            say(classes)
        for each in setup.warnings:
            say(f"WARNING: {each}")
        if restored is not None and restored.report is not None:
            say("Parts of that checkpoint:\n" + restored.report.partition("\n\n")[0])
            if not start.is_resumed:
                text = f"Warm start from {restored.path}.\n{restored.report}"
                self._write("warm-start.txt", text)

    def begin(self, step: int) -> None:
        """Prepare the meters, and write the configuration, if there is a step to train."""
        if step >= self.setup.train_steps:
            return
        if self.setup.settled is not None:
            self.setup.settled()
        self.meters.profiler.begin(step)

    def report(self, step: int, *, log_due: bool = True) -> None:
        """Write the row of a step if one is due and not there yet, unless asked to stop.

        Without `log_due` only an evaluation is due: nothing has been trained.
        """
        log_due = log_due and (step == self.setup.train_steps or step % self.log_period == 0)
        eval_due = self.validation.is_due(step)
        if not (log_due or eval_due) or self.log.row(step) is not None:
            return
        self.saver.watch.drain()
        state = self.saver.state
        row = _train_row(state, self.optimizer) if log_due else {}
        if eval_due:
            with self.meters.clock.inside("eval"):
                evaluated = self.validation.run(state.ema, step, self.save_and_summarize)
            if evaluated is None:
                return
            rule = self.validation.early_stopping
            row |= evaluated | early_stopping.field(rule, self.log.rows, evaluated)
        row |= self.meters.lap(step)
        run_lock.check(self.setup.directory)  # known to process 0
        written = self.log.write(step, row)
        for writer in self.writers:
            writer.write(step, written)
        plots_due = self.is_first_row() or (eval_due and self.plot_due())
        if plots_due and step < self.setup.train_steps:  # a run that is killed has them, too
            with self.meters.clock.inside("eval"):
                self.plot_rows()

    def first_update(
        self, state: TrainState, batch: types.Batch, stop: StopRequest
    ) -> tuple[TrainState, guards.Health]:
        """Make the update that compiles, and remove the summary of an earlier process."""
        step, program = int(state.step) + 1, self.setup.program
        with stop.with_last_words(
            lambda reason: (
                f"Stopped by {reason} before step {step} of {self.setup.train_steps} was "
                "compiled. Nothing is lost: the same command resumes from there."
            ),
            saves=False,
        ):
            if jax.process_count() > 1:  # they cannot save while one of them compiles
                with progress.phase("compiling the evaluation"):
                    self.validation.compile(state.ema)
            with progress.phase("compiling the update"):
                made = program.step(state, batch)
        if jax.process_index() == 0:
            (self.setup.directory / "summary.json").unlink(missing_ok=True)
        return made

    def ends_early(self, step: int) -> bool:
        """Return True, and print why, if the evaluation after `step` is the last one wanted."""
        rule = self.validation.early_stopping
        if rule is None or step >= self.setup.train_steps or not self.validation.is_due(step):
            return False
        message = rule.message(self.log.rows)
        if message is not None:
            self.meters.bar.say(message)
        return message is not None

    def save_and_summarize(self, reason: str) -> str:
        """Save the state of a run that `reason` stops, write the summary, and return a message."""
        self.saver.save()
        summary = self.summarize("preempted")
        self.plot_rows()
        return (
            f"Stopped by {reason} after step {summary['step']} of {self.setup.train_steps}. Saved "
            f"{summary['checkpoint']}: the same command resumes from there."
        )

    def fail(self, error: checks.NonFiniteError, seed: int) -> NoReturn:
        """Write the summary and the batch of a run that a guard stopped; raise with advice."""
        is_spike, watch = isinstance(error, checks.LossSpikeError), self.saver.watch
        reason = "loss_spike" if is_spike else "non_finite"
        summary = self.summarize(reason, str(error))
        good = summary["checkpoint"]
        self.plot_rows()
        batch = None
        if watch.bad_step is not None:  # else it was an evaluation
            batch = replays.save_bad_step(self.setup, seed, watch)
        joining.wait_for_all("reported")  # the first of them to fail ends process 0, which writes
        is_evaluation = isinstance(error, checks.NonFiniteEvaluationError)
        if is_evaluation and good == str(checkpoint_path(self.setup.directory, summary["step"])):
            raise type(error)(
                f"{error} The same command would evaluate {good} again. Move this folder out of "
                f"{self.setup.directory}, lower the learning rate or set AdamW.clip_norm, and run "
                "the command again, which resumes from an older checkpoint if there is one. If the "
                "network is in bfloat16, UNet.dtype = 'float32' may be enough."
            ) from error
        found = f"The last good checkpoint is {good}" if good else "No checkpoint had been saved"
        text = (
            f"{error} {found}. Lower the learning rate or set AdamW.clip_norm, and run the same "
            f"command again{', which resumes' if good else ''}."
        )
        if good:
            text += (
                " To repeat the warm-up, start in a new MODEL_DIR from INITIAL_CHECKPOINT_PATH = "
                f"{good!r}, with --gin_file=gin_configs/runs/finetune.gin first."
            )
        if watch.would_skip:
            text += " Or skip such steps: --gin_file=gin_configs/guards/skip.gin"
        if batch is not None:
            text += f" The batch is in {batch}, for Trainer.replay."
        raise type(error)(text, batch) from error

    def summarize(self, exit_reason: str, error: str | None = None) -> dict[str, Any]:
        """Write summary.json and return it: see `Trainer.run`. All processes must call it."""
        setup, state, images = self.setup, self.saver.state, self.setup.train
        exchange.from_first(lambda: run_lock.check(setup.directory))
        is_finite = exit_reason in ("done", "preempted", early_stopping.REASON)
        step = int(state.step)
        if not is_finite:  # the step that failed, not those already under way
            step = self.saver.watch.step or step
        whole, row = images.partitioner.whole, self.log.row(step) or {}
        good = self.saver.checkpoints.last_good()
        summary = {
            "exit_reason": exit_reason,
            "error": error,
            "step": step,
            "train_steps": setup.train_steps,
            "bpd": row.get(metrics.BPD),
            "bpd_stderr": row.get("eval/bpd_stderr"),
            "bpd_of": "variational bound of the EMA parameters on the evaluation split, bits/dim",
            "params_sha256": fingerprints.sha256(whole(state.params)) if is_finite else None,
            "ema_sha256": fingerprints.sha256(whole(state.ema)) if is_finite else None,
            "num_params": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            **self.meters.summary(),
            "checkpoint": None if good is None else str(good),
            "data": images.split.facts(),
            "eval_data": None if setup.eval is None else setup.eval.split.facts(),
        }
        self.log.flush()
        self._write("summary.json", json.dumps(summary, indent=2) + "\n")
        return summary

    def finish(self, exit_reason: str) -> dict[str, Any]:
        """Write the summary of a run that ends well, return it, and plot everything."""
        summary = self.summarize(exit_reason)
        self.plot_rows()
        params = self.setup.train.partitioner.whole(self.saver.state.ema)
        if jax.process_index() == 0:
            path = self.setup.directory / "train" / "integrand.png"
            with progress.phase("computing the integrand of the bound"), plots.optional(str(path)):
                self._plot_integrand(params, path)
        if warning := averaging.warning(self.setup.facts, summary["step"]):
            self.meters.bar.say(f"WARNING: {warning}")
        return summary

    def plot_rows(self) -> None:
        """Plot the rows so far: the bound by step, and the loss by gamma."""
        rows, folder = self.log.rows, self.setup.directory / "train"
        if jax.process_index() > 0 or not any(
            name.endswith("/bpd") for row in rows for name in row
        ):
            return
        with progress.phase("plotting"), plots.optional(f"Curves in {folder}"):
            plots.plot_bpd_curve(rows, folder / "bpd.png")
            if any("train/loss_by_gamma" in row for row in rows):
                model, path = self.setup.model, folder / "loss_by_gamma.png"
                plots.plot_loss_by_gamma(rows, model.end.gamma_number, model.gamma_max, path)

    def _plot_integrand(self, params: types.Params, path: pathlib.Path) -> None:
        model = self.setup.model.at(params)
        # A training batch, which has no padding, of the first images of the split.
        images = self.setup.eval or self.setup.train
        split = dataclasses.replace(images.split, augmentation=None)
        size = min(images.config.batch_size, split.num_images, integrand.IMAGES)
        count = min(images.config.batch_size, split.num_images) // size * size
        config = dataclasses.replace(images.config, shuffle=False, batch_size=count)
        batch = batch_lib.train_batch(split, config, 0)
        parts = (
            {name: each[i : i + size] for name, each in batch.items()}
            for i in range(0, count, size)
        )
        gammas, values = integrand.of_batches(model)(params, parts, jax.random.key(0))
        some = None if count == split.num_images else count
        plots.plot_integrand(gammas, values, path, some)

    def _write(self, name: str, text: str) -> None:
        if jax.process_index() == 0:
            files.write_atomically(self.setup.directory / name, text)


def due_every(seconds: float) -> Callable[[], bool]:
    """Return a function that returns True at first, and again `seconds` after it last did."""
    last = -math.inf

    def is_due() -> bool:
        nonlocal last
        if time.monotonic() - last < seconds:
            return False
        last = time.monotonic()
        return True

    return is_due


def open_writers(setup: Setup, *, tensorboard: bool, wandb: WandB | None) -> list[Any]:
    """Return the writers of rows beside metrics.jsonl; of process 0 alone."""
    writers: list[Any] = []
    if jax.process_index() == 0:
        if tensorboard:
            name = None if setup.eval is None else setup.eval.split.name
            writers.append(metrics.TensorBoard(setup.directory, name))
        if wandb is not None:
            writers.append(wandb.open(setup.directory, setup.facts))
    return writers


def _train_row(state: TrainState, optimizer: Any) -> metrics.Row:
    """Return means since the last log, and the learning rate of the last update where known."""
    row = {f"train/{name}": each for name, each in train_state.window_means(state).items()}
    if isinstance(optimizer, AdamW):
        steps = int(state.step) - int(guards.num_bad(state.guard))
        used = steps - steps % optimizer.accumulation_steps  # up to the last update
        row["train/learning_rate"] = float(optimizer.learning_rate_at(max(used - 1, 0)))
    return row
