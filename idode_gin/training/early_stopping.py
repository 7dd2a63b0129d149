"""End of a run whose evaluations no longer improve."""

import dataclasses
import math
import pathlib
from collections.abc import Iterable
from typing import Any, final

from idode_gin import checks
from idode_gin.reports import metrics, paths

REASON = "early_stopping"
"""`exit_reason` in the summary of a run that ended here."""
SINCE_BEST = "eval/evaluations_since_best"


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Ends training after `patience` evaluations in a row without a new best one.

    The count is a function of the rows of metrics.jsonl, so a resumed run continues it. It
    restarts at zero if the number of images of an evaluation has changed.

    Args:
        patience: evaluations.
        min_improvement: bits per dim by which an evaluation must be below the best one to be the
            new best one; an evaluation counts against `patience` otherwise.

    Raises:
        ValueError: if a number is out of range.
    """

    patience: int
    min_improvement: float = 0.0

    def __post_init__(self) -> None:
        checks.check_integer("patience", self.patience, at_least=1)
        if not (self.min_improvement >= 0 and math.isfinite(self.min_improvement)):
            raise ValueError(
                "`min_improvement` must be bits per dim, zero or more, got min_improvement="
                f"{self.min_improvement}."
            )

    def check(self, *, evaluates: bool, eval_period: int | None, train_steps: int) -> None:
        """Raise ValueError if a run has no evaluations before its end."""
        if evaluates and eval_period is not None:
            if eval_period < train_steps:
                return
            raise ValueError(
                f"`early_stopping` needs evaluations during training, and the first, after "
                f"EVAL_PERIOD = {eval_period} steps, is not before the last step, {train_steps}. "
                "Evaluate more often, or leave early_stopping at None."
            )
        missing = "EVAL_PERIOD" if evaluates else "train.train_eval_dataset_cfg"
        raise ValueError(
            f"`early_stopping` needs evaluations during training, and {missing} is None. Bind it, "
            "or leave early_stopping at None."
        )

    def since_best(self, values: Iterable[float]) -> tuple[int, float]:
        """Return the number of evaluations since the best one, and its bits per dim."""
        since, best = 0, math.inf
        for value in values:
            is_better = value < best - self.min_improvement
            since, best = (0, value) if is_better else (since + 1, best)
        return since, best

    def message(self, rows: Iterable[metrics.Row]) -> str | None:
        """Return why the run with these rows ends; None if it does not."""
        since, best = self.since_best(row[metrics.BPD] for row in metrics.evaluations(rows))
        if since < self.patience:
            return None
        improved = f" by more than {self.min_improvement:g}" if self.min_improvement else ""
        return (
            f"Stopped early: the last {since} evaluations have not improved{improved} on "
            f"{best:.4f} bits per dim (patience {self.patience}). To train on, raise "
            "EarlyStopping.patience or leave early stopping out."
        )


def field(
    setting: EarlyStopping | None, rows: Iterable[metrics.Row], evaluated: metrics.Row
) -> dict[str, Any]:
    """Return what early stopping adds to the row of an evaluation that follows `rows`."""
    if setting is None:
        return {}
    alike = metrics.evaluations([*rows, evaluated])
    return {SINCE_BEST: setting.since_best(row[metrics.BPD] for row in alike)[0]}


def instead(setting: EarlyStopping | None, directory: str | pathlib.Path) -> str | None:
    """Return why the run in a directory has ended; None if it trains on."""
    path = paths.of(directory) / "metrics.jsonl"
    return None if setting is None else setting.message(metrics.read_rows(path))
