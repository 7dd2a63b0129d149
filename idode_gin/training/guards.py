"""What becomes of a step that came out wrong: the run stops there, or goes on without it.

The compiled update judges every step by its loss and gradient, which are the same on all devices,
and leaves out what a `Skip` rule covers. `Watch` reads the verdicts a few steps later and stops the
run where a rule says so.
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
"""Scalars carried from step to step, the same whatever the rules; see `fresh`."""

Health: TypeAlias = dict[str, Array]
"""Of one step: `loss`, `grad_norm` (before clipping), `param_norm` (after the update) and what
`judge` adds to them, all `[]`."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """The run stops at the step, unsaved; the last good checkpoint stays."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Skip:
    """The step leaves parameters, their average and the optimizer as they were.

    The steps count on, and so do data and noise; the optimizer's own count of updates, and with it
    a learning-rate schedule, does not.

    Args:
        max_consecutive: so many in a row are left out; the next one stops the run.
        max_total: so many of the whole run, restarts included.

    Raises:
        ValueError: if a number is no positive integer.
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
    """A loss above `factor` times its running mean; `then` says what becomes of the step.

        mean <- mean + max(1 / n, 1 - rate) (loss - mean)       over the n steps that were no spike

    The loss is in bits per dimension. While the mean is not positive, nothing is a spike.

    Args:
        factor: greater than 1.
        rate: of the running mean, in [0, 1): it looks back over some 1 / (1 - rate) steps.
        warmup_steps: steps before the first verdict, in which the loss may do what it likes.
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
        non_finite: for a loss or gradient that is NaN or infinite. Parameters that are not finite
            after an update that was, stop the run under either rule.
        loss_spike: for a loss that is finite and too large; None lets it be.
    """

    non_finite: Rule = Stop()
    loss_spike: LossSpike | None = None

    def rule(self, kind: int) -> Rule:
        """The rule for `NON_FINITE` or `SPIKE`."""
        if kind == NON_FINITE or self.loss_spike is None:
            return self.non_finite
        return self.loss_spike.then

    @property
    def can_skip(self) -> bool:
        """Whether there are steps that are left out."""
        rules = [self.non_finite] if self.loss_spike is None else list(map(self.rule, (1, 2)))
        return any(isinstance(each, Skip) for each in rules)


STOP = Guards()
"""A loss or gradient that is not finite stops the run."""


def fresh() -> GuardState:
    """The state before the first step: running mean, steps in it, and counts of bad steps."""
    counts = [f"{kind}_{count}" for kind in _KINDS for count in ("run", "total")]
    zeros = {name: jnp.zeros((), jnp.int32) for name in ("mean_steps", *counts)}
    return {"loss_mean": jnp.zeros(()), **zeros}


def num_bad(state: GuardState) -> Integer[Array, ""]:
    """Bad steps so far. As any other ends the run, those that were left out."""
    return state["non_finite_total"] + state["spike_total"]


def judge(
    guards: Guards, state: GuardState, loss: Float[Array, ""], grad_norm: Float[Array, ""]
) -> tuple[Bool[Array, ""], GuardState, Health]:
    """The verdict on a step.

    Returns:
        Whether to leave the step out, the state after it, and, for `Watch`, `verdict` (`GOOD`,
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
    """Reads the verdicts of a few steps ago, so that the device is never waited for.

    `step` and `loss` are those of the last step seen to be finished, 0 and NaN before there is
    one; `health` is all that is known of it. `bad_step` is the one that stopped the run, and
    `would_skip` whether a `Skip` rule in place of `Stop` would have left it out.

    Args:
        guards: the rules.
        look_ahead: steps that may be in flight unseen.
        say: is told of every step that is left out.
    """

    def __init__(
        self,
        guards: Guards = STOP,
        look_ahead: int = 2,
        say: Callable[[str], Any] = logging.warning,
    ) -> None:
        self._guards, self._look_ahead, self._say = guards, look_ahead, say
        self._pending: collections.deque[tuple[int, Health]] = collections.deque()
        self.step, self.loss = 0, float("nan")
        self.bad_step: int | None = None
        self.would_skip = False
        self.health: dict[str, float] = {}

    def push(self, step: int, health: Health) -> None:
        """Adds a step just sent to the device; `step` counts the updates including it.

        Raises:
            checks.NonFiniteError: if a rule stops the run at an earlier step.
            checks.LossSpikeError: likewise, for a loss that is finite.
        """
        self._pending.append((step, health))
        while len(self._pending) > self._look_ahead:
            self._check(*self._pending.popleft())

    def drain(self) -> None:
        """Waits for every step in flight. Raises like `push`."""
        while self._pending:
            self._check(*self._pending.popleft())

    def _check(self, step: int, health: Health) -> None:
        values = {name: float(each) for name, each in jax.device_get(health).items()}
        self.step, self.loss, self.health = step, values["loss"], values
        verdict = int(values["verdict"])
        if verdict == GOOD and math.isfinite(values["param_norm"]):
            return
        if verdict == SPIKE:
            what = (
                f"Step {step} is a spike: its loss of {values['loss']:.4g} is more than "
                f"{self._factor:g} times the running mean, {values['loss_mean']:.4g}."
            )
        else:
            what = (
                f"Step {step} is not finite: loss {values['loss']}, norm of the gradient "
                f"{values['grad_norm']}, norm of the parameters {values['param_norm']}."
            )
        reason = self._why_stop(verdict, values)
        if reason is None:
            self._say(f"{what} Left out: {values['run']:.0f} in a row, {values['total']:.0f} ever.")
            return
        self.bad_step = step
        self.would_skip = verdict != GOOD and isinstance(self._guards.rule(verdict), Stop)
        kind = checks.LossSpikeError if verdict == SPIKE else checks.NonFiniteError
        raise kind(f"{what}{reason}")

    @property
    def _factor(self) -> float:
        return float("nan") if self._guards.loss_spike is None else self._guards.loss_spike.factor

    def _why_stop(self, verdict: int, values: dict[str, float]) -> str | None:
        """What to add to the error; None if the step was left out and that is all."""
        rule = self._guards.rule(verdict)
        if verdict == GOOD or not isinstance(rule, Skip) or not math.isfinite(values["param_norm"]):
            return ""
        for name, count in (("max_consecutive", "run"), ("max_total", "total")):
            if values[count] > getattr(rule, name):
                in_a_row = " in a row" if count == "run" else ""
                limit = getattr(rule, name)
                return f" {limit} such steps{in_a_row} were left out already (Skip.{name})."
        return None
