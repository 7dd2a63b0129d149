"""When a run saves, how much of it stays, and what it starts from."""

import dataclasses
import math
from collections.abc import Mapping
from typing import final

from idode_gin import checks
from idode_gin.checkpoints import warm_start

_MODES = ("latest", "specific")


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveCheckpointConfig:
    """When to save, and how much of it to keep.

    Nothing is deleted before a newer checkpoint is whole and on disk.

    Args:
        period: steps between checkpoints; the last step of a run is saved in any case. None saves
            nothing but that.
        keep: the newest so many checkpoints stay, older ones are deleted; None keeps all. With 1
            there is none to fall back on if the only one is damaged.
        keep_period: checkpoints of its multiples are never deleted.
        keep_best: the so many checkpoints of the lowest bits per dim on the evaluation split stay
            as well, each judged by the evaluation of its own step.

    Raises:
        ValueError: if a number is not positive, or one has no effect.
    """

    period: int | None = 1000
    keep: int | None = 3
    keep_period: int | None = None
    keep_best: int | None = None

    def __post_init__(self) -> None:
        for name in ("period", "keep", "keep_period", "keep_best"):
            if (value := getattr(self, name)) is not None:
                checks.check_positive(f"SaveCheckpointConfig.{name}", value)
        for name in ("keep_period", "keep_best"):
            if self.keep is None and getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` says what stays when older checkpoints are deleted, and with "
                    f"keep=None none is. Got {name}={getattr(self, name)}: set `keep`, such as 3."
                )
        if self.keep_period is not None and self.period is not None:
            unit = f"`keep_period` must be a multiple of period={self.period}"
            if self.keep_period % self.period:
                raise ValueError(
                    f"{unit}: no other step is saved. Got keep_period={self.keep_period}. The next "
                    f"valid one is {-(-self.keep_period // self.period) * self.period}."
                )

    def check_best(self, *, evaluates: bool, eval_period: int | None, last_step: int) -> None:
        """Raises ValueError if `keep_best` has no evaluations to judge by.

        Args:
            evaluates: whether the run has an evaluation split.
            eval_period: steps between evaluations; None for one at the end.
            last_step: at which the run ends.
        """
        if self.keep_best is None:
            return
        got = f"got keep_best={self.keep_best}"
        if not evaluates:
            raise ValueError(
                f"`keep_best` needs an evaluation to judge by, {got} and no evaluation split. Bind "
                "train.train_eval_dataset_cfg, or leave keep_best at None."
            )
        if self.period is None or eval_period is None:
            first = math.inf
        else:
            first = math.lcm(self.period, eval_period)
        if first > last_step:
            raise ValueError(
                f"`keep_best` judges a checkpoint by the evaluation of its own step, {got}, "
                f"checkpoints every {self.period} and evaluations every {eval_period} steps: they "
                f"never coincide before the last, {last_step}. Make EVAL_PERIOD a multiple of "
                "CHECKPOINT_PERIOD, or leave keep_best at None."
            )


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class RestoreCheckpointConfig:
    """What a run starts from while its own directory holds no checkpoint.

    Args:
        path: a run directory (its newest checkpoint that is not damaged) or one
            `checkpoint_<step>` directory. None starts from scratch.
        mode: "latest" insists that `path` is a run directory, "specific" that it is one
            checkpoint; None takes either.
        params: 'restore', or 'reset' to take fresh ones.
        ema: 'restore', or 'reset' to start the average from the parameters.
        optimizer: 'restore', or 'reset' to start without moments.
        step: 'restore' to count on from the checkpoint's, or 'reset' to count from zero. A
            learning-rate schedule follows the step.
        rules: for single leaves: regular expressions to what is to be done, see `warm_start`.
        fresh_start: what `optimizer` and `step` replaced; setting it raises.

    Raises:
        ValueError: if a value is unknown or has no effect, or nothing would be restored.
    """

    path: str | None = None
    mode: str | None = None
    params: str = warm_start.RESTORE
    ema: str = warm_start.RESTORE
    optimizer: str = warm_start.RESTORE
    step: str = warm_start.RESTORE
    rules: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fresh_start: bool | None = None

    def __post_init__(self) -> None:
        if self.fresh_start is not None:
            raise ValueError(
                "`fresh_start` is now said part by part: bind RestoreCheckpointConfig.optimizer = "
                "'reset' and RestoreCheckpointConfig.step = 'reset' instead, as "
                "gin_configs/runs/finetune.gin does."
            )
        if self.mode is not None:
            _check_choice("mode", self.mode, _MODES, " or None")
        for name in (*warm_start.PARTS, "step"):
            _check_choice(name, getattr(self, name), warm_start.CHOICES)
        rules = warm_start.parse(self.rules)
        restores = [self.defaults[part] for part in warm_start.PARTS]
        restores += [rule.action for rule in rules]
        if not {warm_start.RESTORE, warm_start.PAD} & set(restores):
            raise ValueError(
                "Nothing would be restored: params, ema and optimizer are all 'reset'. Bind path "
                "= None to start from scratch."
            )

        self._check_path()

    def _check_path(self) -> None:
        if self.path == "":
            raise ValueError(
                "`path` must name a run directory or a checkpoint_<step> in one, got an empty "
                "string. Bind INITIAL_CHECKPOINT_PATH, or leave it at None to start from scratch."
            )
        if self.path is not None:
            return
        idle = [
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) not in (None, warm_start.RESTORE, {})
        ]
        if idle:
            raise ValueError(
                f"{', '.join(map(repr, idle))} say what becomes of another run's checkpoint, and "
                "`path` is None. Bind INITIAL_CHECKPOINT_PATH, or leave them out."
            )

    @property
    def defaults(self) -> dict[str, str]:
        """'restore' or 'reset' for every part."""
        return {part: getattr(self, part) for part in warm_start.PARTS}


def _check_choice(name: str, value: str, choices: tuple[str, ...], more: str = "") -> None:
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {choices}{more}, got {name}={value!r}. "
            f"{checks.nearest(str(value), choices)}"
        )


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Saving and restoring.

    Args:
        save: when and how much.
        restore: what to start from.
    """

    save: SaveCheckpointConfig = SaveCheckpointConfig()
    restore: RestoreCheckpointConfig = RestoreCheckpointConfig()
