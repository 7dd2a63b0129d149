"""Rules for bad steps: one whose loss or gradient is not finite, or whose loss jumps.

The compiled update judges every step by its loss and gradient, which are the same on all devices,
and skips a bad step under a `Skip` rule. `Watch` reads the verdicts a few steps later and stops the
run if a rule requires it.
"""

import collections
import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias, final

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Bool, Float, Integer

from idode_gin import checks

GOOD, NON_FINITE, SPIKE = 0, 1, 2
_KINDS = {"non_finite": NON_FINITE, "spike": SPIKE}

GuardState: TypeAlias = dict[str, Any]
"""Scalars carried from step to step, the same for all rules: see `fresh`."""

Health: TypeAlias = dict[str, Array]
"""Numbers of one step, all `[]`: `loss`, `grad_norm` (before clipping), `param_norm` (after the
update) and those that `judge` adds."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """Stop the run at a bad step, unsaved; the last good checkpoint stays."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Skip:
    """Skip a bad step: parameters, their average and the optimizer do not change.

    The step is counted, and data and noise advance; the optimizer's own count of updates, and with
    it a learning-rate schedule, does not.

    Args:
        max_consecutive: steps skipped in a row; the next bad one stops the run.
        max_total: steps skipped in the whole run, restarts included; the next stops the run.

    Raises:
        ValueError: if a number is not a positive integer.
    """

    max_consecutive: int = 5
    max_total: int = 100

    def __post_init__(self) -> None:
        for name in ("max_consecutive", "max_total"):
            checks.check_integer(f"Skip.{name}", getattr(self, name), at_least=1)


Rule: TypeAlias = Stop | Skip


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSpike:
    """A loss above `factor` times its running mean is a spike, to which the rule `then` applies.

        mean <- mean + max(1 / n, 1 - rate) (loss - mean)       over the n steps without a spike

    The loss is in bits per dimension. While the mean is not positive, no step is a spike.

    Args:
        factor: ratio of loss to mean, greater than 1.
        rate: decay of the running mean, in [0, 1); it averages about 1 / (1 - rate) steps.
        warmup_steps: steps before the first that can be a spike.
        then: `Stop` or `Skip`.

    Raises:
        ValueError: if a number is out of range.
    """

    factor: float = 3.0
    rate: float = 0.99
    warmup_steps: int = 100
    then: Rule = Stop()

    def __post_init__(self) -> None:
        if not self.factor > 1 or not math.isfinite(self.factor):
            raise ValueError(
                f"`LossSpike.factor` must be greater than 1, got factor={self.factor}. It "
                "multiplies the running mean of the loss."
            )
        if not 0 <= self.rate < 1:
            raise ValueError(f"`LossSpike.rate` must be in [0, 1), got rate={self.rate}.")
        checks.check_integer("LossSpike.warmup_steps", self.warmup_steps, at_least=1)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Guards:
    """The rules of a run.

    Args:
        non_finite: rule for a loss or gradient that is NaN or infinite. If both are finite and the
            parameters are not after the update, the run stops under either rule.
        loss_spike: rule for a finite loss that is too large; None for no rule.
    """

    non_finite: Rule = Stop()
    loss_spike: LossSpike | None = None

    def rule(self, kind: int) -> Rule:
        """Return the rule for `NON_FINITE` or `SPIKE`."""
        if kind == NON_FINITE or self.loss_spike is None:
            return self.non_finite
        return self.loss_spike.then

    @property
    def can_skip(self) -> bool:
        """True if any rule skips steps."""
        return any(isinstance(self.rule(kind), Skip) for kind in _KINDS.values())


STOP = Guards()
"""Stop the run at a loss or gradient that is not finite."""


def fresh() -> GuardState:
    """Return the state before the first step: running mean, its steps, and counts of bad steps."""
    counts = [f"{kind}_{count}" for kind in _KINDS for count in ("run", "total")]
    zeros = {name: jnp.zeros((), jnp.int32) for name in ("mean_steps", *counts)}
    return {"loss_mean": jnp.zeros(()), **zeros}


def num_bad(state: GuardState) -> Integer[Array, ""]:
    """Return the number of skipped steps: a bad step that is not skipped ends the run."""
    return state["non_finite_total"] + state["spike_total"]


def judge(
    guards: Guards, state: GuardState, loss: Float[Array, ""], grad_norm: Float[Array, ""]
) -> tuple[Bool[Array, ""], GuardState, Health]:
    """Judge a step.

    Returns:
        Whether to skip the step; the state after it; and for `Watch` its `verdict` (`GOOD`,
        `NON_FINITE` or `SPIKE`), `run` and `total` (bad steps of that kind, in a row and in all)
        and `loss_mean`, the running mean that the loss was compared with.
    """
    is_bad = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
    verdict = jnp.where(is_bad, NON_FINITE, GOOD)
    after, mean, spike = dict(state), state["loss_mean"], guards.loss_spike
    if spike is not None:
        is_spike = (state["mean_steps"] >= spike.warmup_steps) & (mean > 0)
        is_spike &= loss > spike.factor * mean
        verdict = jnp.where(is_spike & ~is_bad, SPIKE, verdict)
        steps = state["mean_steps"] + (verdict == GOOD)
        weight = jnp.maximum(1 / jnp.maximum(steps, 1), 1 - spike.rate)
        moved = mean + weight.astype(mean.dtype) * (loss.astype(mean.dtype) - mean)
        after |= {"mean_steps": steps, "loss_mean": jnp.where(verdict == GOOD, moved, mean)}
    skip = jnp.zeros((), bool)
    for name, kind in _KINDS.items():
        is_kind, run = verdict == kind, state[f"{name}_run"]
        run = jnp.where(verdict == GOOD, 0, run + is_kind)
        after |= {f"{name}_run": run, f"{name}_total": state[f"{name}_total"] + is_kind}
        if isinstance(guards.rule(kind), Skip):
            skip |= is_kind
    health = {
        "verdict": verdict,
        "run": jnp.where(verdict == SPIKE, after["spike_run"], after["non_finite_run"]),
        "total": jnp.where(verdict == SPIKE, after["spike_total"], after["non_finite_total"]),
        "loss_mean": mean,
    }
    return skip, after, health


class Watch:
    """Reads the verdicts of a few steps ago, so that the loop never waits for the device.

    Args:
        guards: the rules.
        look_ahead: steps that may be in flight unchecked.
        say: called with a sentence for every step that is skipped.

    Attributes:
        step: last step that is known to be finished; 0 before there is one.
        health: numbers of that step.
        bad_step: step that stopped the run, if one did.
        would_skip: whether a `Skip` rule in place of `Stop` would have skipped it.
    """

    def __init__(
        self,
        guards: Guards = STOP,
        look_ahead: int = 2,
        say: Callable[[str], Any] = logging.warning,
    ) -> None:
        self._guards, self._look_ahead, self._say = guards, look_ahead, say
        self._pending: collections.deque[tuple[int, Health]] = collections.deque()
        self.step, self.health = 0, dict[str, float]()
        self.bad_step: int | None = None
        self.would_skip = False

    @property
    def loss(self) -> float:
        """Loss of the last finished step; NaN before there is one."""
        return self.health.get("loss", math.nan)

    def push(self, step: int, health: Health) -> None:
        """Add a step just sent to the device; `step` counts the updates including it.

        Raises:
            checks.NonFiniteError: if a rule stops the run at an earlier step.
            checks.LossSpikeError: likewise, for a loss that is finite.
        """
        self._pending.append((step, health))
        while len(self._pending) > self._look_ahead:
            self._check(*self._pending.popleft())

    def drain(self) -> None:
        """Wait for every step in flight. Raises like `push`."""
        while self._pending:
            self._check(*self._pending.popleft())

    def _check(self, step: int, health: Health) -> None:
        self.step = step
        self.health = {name: float(each) for name, each in jax.device_get(health).items()}
        verdict, values = int(self.health["verdict"]), self.health
        is_finite = math.isfinite(values["param_norm"])
        if verdict == GOOD and is_finite:
            return
        if verdict == SPIKE and self._guards.loss_spike is not None:
            what = (
                f"Step {step} is a spike: its loss of {values['loss']:.4g} is more than "
                f"{self._guards.loss_spike.factor:g} times the running mean, "
                f"{values['loss_mean']:.4g}."
            )
        else:
            what = (
                f"Step {step} is not finite: loss {values['loss']}, norm of the gradient "
                f"{values['grad_norm']}, norm of the parameters {values['param_norm']}."
            )
        rule, reason = self._guards.rule(verdict), ""
        if verdict != GOOD and isinstance(rule, Skip) and is_finite:
            reason = _limit_exceeded(rule, values)
            if not reason:
                run, total = values["run"], values["total"]
                self._say(f"{what} Skipped: {run:.0f} in a row, {total:.0f} in all.")
                return
        self.bad_step = step
        self.would_skip = verdict != GOOD and isinstance(rule, Stop)
        kind = checks.LossSpikeError if verdict == SPIKE else checks.NonFiniteError
        raise kind(f"{what}{reason}")


def _limit_exceeded(rule: Skip, values: dict[str, float]) -> str:
    """Return which limit of `rule` a bad step exceeds, to add to the error; "" for none."""
    if values["run"] > rule.max_consecutive:
        limit = rule.max_consecutive
        return f" {limit} such steps in a row were skipped already (Skip.max_consecutive)."
    if values["total"] > rule.max_total:
        return f" {rule.max_total} such steps were skipped already (Skip.max_total)."
    return ""
