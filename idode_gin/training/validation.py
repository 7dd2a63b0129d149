"""Evaluation of the EMA parameters during training."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, final

import jax

from idode_gin import types
from idode_gin.processes.preemption import StopRequest
from idode_gin.reports import metrics, progress
from idode_gin.runs import means
from idode_gin.training.early_stopping import EarlyStopping
from idode_gin.training.setup import Setup


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """The variational bound of the EMA parameters on the evaluation split.

    `period` is the number of steps between evaluations, None for one at the end only; `first` is
    the step that a run starts from, None if it has trained before; `batches` is the length of an
    evaluation, of images spread evenly over the split; None for the whole split.
    """

    setup: Setup
    first: int | None
    period: int | None
    batches: int | None
    early_stopping: EarlyStopping | None
    stop: StopRequest
    say: Callable[[str], Any]

    def is_due(self, step: int) -> bool:
        """Return True if an evaluation is due after `step`."""
        if self.setup.eval is None:
            return False
        if step in (self.first, self.setup.train_steps):
            return True
        return step > 0 and self.period is not None and step % self.period == 0

    def compile(self, ema: types.Params) -> None:
        """Evaluate one batch, so that no later evaluation compiles."""
        if (images := self.setup.eval) is not None:
            batch = images.put(next(images.eval_batches()))
            jax.block_until_ready(self.setup.program.evaluate(ema, batch))

    def run(
        self, ema: types.Params, step: int, last_words: Callable[[str], str]
    ) -> metrics.Row | None:
        """Return `eval/…` fields of a row; None if asked to stop meanwhile.

        `last_words` saves the run if it is asked to stop while the evaluation compiles.

        Raises:
            checks.NonFiniteEvaluationError: if a mean is not finite.
        """
        images = self.setup.eval
        assert images is not None
        size, total = images.config.batch_size, images.num_evaluated(self.batches)

        def evaluate(batch: types.Batch) -> dict[str, Any]:
            is_first = going_on.done == 0
            with progress.phase("first batch") if is_first else contextlib.nullcontext():
                values = self.setup.program.evaluate(ema, images.put(batch))
            going_on.advance(min(size, total - going_on.done))
            return values

        phase = progress.phase(f"evaluating after step {step}", total)
        with phase as going_on, self.stop.with_last_words(last_words):
            found = means.over_batches(
                evaluate,
                images.eval_batches(self.batches),
                total,
                lambda: self.stop.requested,
            )
        if found is None:
            return None
        row = means.row(found, step)
        self.say(
            f"step {step}: {row['eval/bpd']:.4f} ± {row.get('eval/bpd_stderr', float('nan')):.4f} "
            f"bits per dimension on {row['eval/images']} images of {images.split.name}, "
            f"{images.split.split} (variational bound, EMA parameters)"
        )
        return row


def check_wanted(
    early_stopping: EarlyStopping | None,
    period: int | None,
    evaluates: bool,
    before: bool,
    train_steps: int,
) -> None:
    """Raise ValueError if a setting needs evaluations that a run does not make.

    Args:
        early_stopping: rule that ends the run.
        period: steps between evaluations.
        evaluates: True if the run has an evaluation split.
        before: True to evaluate before training.
        train_steps: last step of the run.
    """
    if early_stopping is not None:
        early_stopping.check(evaluates=evaluates, eval_period=period, train_steps=train_steps)
    if before and not evaluates:
        raise ValueError(
            "`run_eval_before_training` needs an evaluation split, got True and none. Bind "
            "train.train_eval_dataset_cfg, or leave it at False."
        )
