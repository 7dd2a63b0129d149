"""Everything a training run carries from one step to the next."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from idode_gin import types

COUNT = "count"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """A pytree: together with the seed and the data it determines the rest of the run.

    Its fields are untyped because trees of the same structure hold shapes or shardings.

    Args:
        step: updates made so far, an integer `[]`.
        params: the network's parameters.
        ema: exponential moving average of `params`, the ones that are evaluated.
        opt_state: optax's.
        window: sums `[]` of the metrics since the last log, and `count`, the steps they are
            summed over. They are part of the state so that a restart in mid-window logs the same
            row.
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any
    window: dict[str, Any]


def create(
    params: types.Params, transformation: optax.GradientTransformation, metrics: Iterable[str]
) -> TrainState:
    """The state before the first step.

    Args:
        params: fresh parameters.
        transformation: the optimizer.
        metrics: names of what `window` sums, next to `count`.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: the update donates its buffers, and one buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, params),
        opt_state=transformation.init(params),
        window={name: jnp.zeros(()) for name in (COUNT, *metrics)},
    )


def window_means(state: TrainState) -> dict[str, float]:
    """Means of the metrics since the last log. Waits for the device."""
    sums = jax.device_get(state.window)
    count = float(sums.pop(COUNT))
    return {name: float(each) / count for name, each in sorted(sums.items())} if count else {}
