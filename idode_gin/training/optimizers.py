"""AdamW as published, with its learning-rate schedule inside."""

import dataclasses
import math
from typing import Any, final

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer

from idode_gin import checks
from idode_gin.schedules.time.base import PARAMS

WARMUP_START = 1e-8
"""Learning rate at the start of the warm-up and at the end of the decay, as published."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay, linear warm-up and optional linear decay.

        rate(s) = 1e-8 + (learning_rate - 1e-8) * s / warmup_steps      while s < warmup_steps
        then constant, or with decay_steps linearly back to 1e-8 at s = decay_steps

    Steps are training steps, also where gradients are accumulated. Biases and the parameters of
    gamma(t) are not decayed; everything else is, normalization scales included, as published.

    Args:
        learning_rate: rate after the warm-up.
        b1: decay of the mean of the gradients.
        b2: decay of the mean of their squares.
        eps: added to the root of the mean square.
        weight_decay: strength of the decay, multiplied by the learning rate.
        warmup_steps: length of the warm-up; 0 starts at `learning_rate`.
        decay_steps: step, counted from zero, at which the rate is back at 1e-8; usually
            TRAIN_STEPS. None keeps the rate constant.
        clip_norm: largest global norm of a gradient; longer ones are scaled down. None: no limit.
        accumulation_steps: steps between two updates, each by the mean gradient of these steps.

    Raises:
        ValueError: if a number is out of range, or the decay ends before the warm-up.
    Refs: i-DODE, experimental settings.
    """

    learning_rate: float = 2e-4
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay_steps: int | None = None
    clip_norm: float | None = None
    accumulation_steps: int = 1

    def __post_init__(self) -> None:
        checks.check_positive("learning_rate", self.learning_rate)
        checks.check_positive("eps", self.eps)
        checks.check_count("accumulation_steps", self.accumulation_steps)
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {name}={getattr(self, name)}.")
        checks.check_integer("warmup_steps", self.warmup_steps, at_least=0)
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"`weight_decay` must be finite and not negative, got {self.weight_decay}."
            )
        if self.clip_norm is not None:
            checks.check_positive("clip_norm", self.clip_norm)
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"`decay_steps` must be greater than `warmup_steps`, got decay_steps="
                f"{self.decay_steps} and warmup_steps={self.warmup_steps}. Set it to the step at "
                "which the decay ends, usually TRAIN_STEPS, or to None for a constant rate."
            )

    def learning_rate_at(self, step: int | Integer[Array, ""]) -> Float[Array, ""]:
        """Return the learning rate of the update that follows `step` others."""
        height = jnp.ones(())
        if self.warmup_steps:
            height = jnp.minimum(height, step / self.warmup_steps)
        if self.decay_steps is not None:
            span = self.decay_steps - self.warmup_steps
            height = jnp.minimum(height, jnp.maximum((self.decay_steps - step) / span, 0.0))
        return WARMUP_START * (1 - height) + self.learning_rate * height

    def build(self) -> optax.GradientTransformation:
        """Return the optax transformation."""
        every = self.accumulation_steps

        def rate(updates: Integer[Array, ""]) -> Float[Array, ""]:
            return self.learning_rate_at(every * updates + every - 1)

        adamw = optax.adamw(
            rate,
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=decayed,
        )
        if self.clip_norm is not None:
            adamw = _clipped(adamw, self.clip_norm)
        if every == 1:
            return adamw
        return optax.MultiSteps(adamw, every).gradient_transformation()


def _clipped(optimizer: optax.GradientTransformation, norm: float) -> optax.GradientTransformation:
    """Clip the gradient first. The state is the optimizer's own, so a run may begin to clip."""
    clip = optax.clip_by_global_norm(norm)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        grads, _ = clip.update(grads, optax.EmptyState())
        return optimizer.update(grads, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def decayed(params: Any) -> Any:
    """Return a tree: True for every leaf that weight decay applies to.

    That is all but `bias`, and the parameters of gamma(t), which zero means nothing to.
    """

    def is_decayed(path: tuple[Any, ...], _: Any) -> bool:
        first, last = (jax.tree_util.keystr(each, simple=True) for each in (path[:1], path[-1:]))
        return last != "bias" and first != PARAMS

    return jax.tree_util.tree_map_with_path(is_decayed, params)
