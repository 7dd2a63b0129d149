"""Settings of saving and restoring."""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import final

from idode_gin import checks
from idode_gin.checkpoints import warm_start
from idode_gin.reports.paths import StoredPath

_MODES = ("latest", "specific")


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveCheckpointConfig:
    """Settings of saving: when, and which checkpoints are kept.

    Nothing is deleted before a newer checkpoint is complete and on disk, and no checkpoint in
    whose folder there is a file named PINNED.

    Args:
        period: steps between checkpoints. The last step is always saved; None saves only that.
        checkpoint_steps: steps to save as well. These are never deleted.
        keep: number of newest checkpoints to keep; None keeps all. With 1 there is nothing to fall
            back on if that one is damaged.
        keep_period: steps that are multiples of it are never deleted.
        keep_best: number of checkpoints with the lowest bits per dim on the evaluation split to
            keep as well, each judged by the evaluation of its own step. If evaluations differ in
            their number of images, so many are kept for each number.

    Raises:
        ValueError: if a number is not positive, or a setting has no effect.
    """

    period: int | None = 1000
    checkpoint_steps: tuple[int, ...] = ()
    keep: int | None = 3
    keep_period: int | None = None
    keep_best: int | None = None

    def __post_init__(self) -> None:
        for name in ("period", "keep", "keep_period", "keep_best"):
            if (value := getattr(self, name)) is not None:
                checks.check_count(f"SaveCheckpointConfig.{name}", value)
        for step in self.checkpoint_steps:
            checks.check_integer("SaveCheckpointConfig.checkpoint_steps", step, at_least=1)
        for name in ("keep_period", "keep_best"):
            if self.keep is None and getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` has no effect with keep=None, which deletes nothing. Got "
                    f"{name}={getattr(self, name)}: set `keep`, for example to 3."
                )
        if self.keep_period is not None:
            if self.period is None:
                raise ValueError(
                    f"`keep_period` has no effect with period=None, which saves the last step and "
                    f"`checkpoint_steps` alone. Got keep_period={self.keep_period}: set `period`."
                )
            unit = f"`keep_period` must be a multiple of period={self.period}"
            if self.keep_period % self.period:
                raise ValueError(
                    f"{unit}: no other step is saved. Got keep_period={self.keep_period}. The next "
                    f"valid value is {-(-self.keep_period // self.period) * self.period}."
                )

    def doomed(
        self,
        steps: Sequence[int],
        evaluated: Callable[[int], tuple[float, int | None] | None],
    ) -> list[int]:
        """Return the steps whose checkpoints may be deleted.

        Args:
            steps: steps of the complete checkpoints, ascending.
            evaluated: bits per dim of a step, and of how many images; None without an evaluation.
                Evaluations of different numbers of images do not compare: the best of each stay.
        """
        if self.keep is None:
            return []
        stay = {*steps[-self.keep :], *self.checkpoint_steps}
        if self.keep_period is not None:
            stay |= {step for step in steps if step % self.keep_period == 0}
        judged = collections.defaultdict[int | None, list[tuple[float, int]]](list)
        for step in steps:
            if (found := evaluated(step)) is not None:
                judged[found[1]].append((found[0], -step))
        for each in judged.values():
            stay |= {-step for _, step in sorted(each)[: self.keep_best or 0]}
        return [step for step in steps if step not in stay]

    def check_best(self, *, evaluates: bool, eval_period: int | None, last_step: int) -> None:
        """Check that `keep_best` has evaluations to judge by.

        Args:
            evaluates: True if the run has an evaluation split.
            eval_period: steps between evaluations; None for one at the end.
            last_step: last step of the run.

        Raises:
            ValueError: if no checkpoint before the last coincides with an evaluation.
        """
        if self.keep_best is None:
            return
        got = f"got keep_best={self.keep_best}"
        if not evaluates:
            raise ValueError(
                f"`keep_best` needs an evaluation split, {got} and none. Bind "
                "train.train_eval_dataset_cfg, or leave keep_best at None."
            )
        first = math.inf
        if eval_period is not None:
            steps = [step for step in self.checkpoint_steps if step % eval_period == 0]
            steps += [] if self.period is None else [math.lcm(self.period, eval_period)]
            first = min(steps, default=math.inf)
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
    """Start of a run whose own directory holds no checkpoint (a warm start).

    Args:
        path: a run directory (its newest intact checkpoint) or one `checkpoint_<step>` directory.
            None starts from scratch.
        mode: "latest" requires `path` to be a run directory, "specific" one checkpoint; None
            accepts both.
        params: 'restore', or 'reset' to initialize them.
        ema: 'restore', or 'reset' to start the moving average at the parameters.
        optimizer: 'restore', or 'reset' to start without moments.
        step: 'restore' to continue counting at the checkpoint's step, or 'reset' to count from
            zero. The schedule of an `AdamW` follows the step, also if `optimizer` is reset; that of
            another optax transformation follows the optimizer's own count.
        rules: exceptions for single leaves, regular expression to action; see `warm_start`.

    Raises:
        ValueError: if a value is unknown or has no effect, or nothing would be restored.
    """

    path: StoredPath | None = None
    mode: str | None = None
    params: str = warm_start.RESTORE
    ema: str = warm_start.RESTORE
    optimizer: str = warm_start.RESTORE
    step: str = warm_start.RESTORE
    rules: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
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
        if idle := self.exceptions:
            raise ValueError(
                f"{', '.join(map(repr, idle))} apply to the checkpoint at `path`, and `path` is "
                "None. Bind INITIAL_CHECKPOINT_PATH, or leave them out."
            )

    @property
    def exceptions(self) -> list[str]:
        """Names of the settings beside `path` that are not at their defaults."""
        return [
            field.name
            for field in dataclasses.fields(self)
            if field.name != "path"
            and getattr(self, field.name) not in (None, warm_start.RESTORE, {})
        ]

    @property
    def defaults(self) -> dict[str, str]:
        """Default action, 'restore' or 'reset', of every part."""
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
    """Settings of saving and restoring.

    Args:
        save: when to save, what to keep.
        restore: what to start from.
    """

    save: SaveCheckpointConfig = SaveCheckpointConfig()
    restore: RestoreCheckpointConfig = RestoreCheckpointConfig()
