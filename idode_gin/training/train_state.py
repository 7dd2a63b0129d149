"""Everything a training run carries from one step to the next."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from idode_gin import types
from idode_gin.training import guards

COUNT, SKIPPED = "count", "skipped"
LOSS_BY_GAMMA, GAMMA_SHARE = "loss_by_gamma", "gamma_share"
SQUARES, SAMPLES = "integrand_squares", "integrand_samples"
"""Sums of bins that an adapted gamma(t) follows; they start again with each adaptation."""


def create(
    params: types.Params,
    transformation: optax.GradientTransformation,
    metrics: Iterable[str],
    gamma_bins: int = 0,
    adapted_bins: int = 0,
) -> types.TrainState:
    """Return the state before the first step; `metrics` are names of those that `window` sums."""
    by_gamma = (LOSS_BY_GAMMA, GAMMA_SHARE) if gamma_bins else ()
    adapted = (SQUARES, SAMPLES) if adapted_bins else ()
    return types.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: the update donates its buffers, and one buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, params),
        opt_state=transformation.init(params),
        window={
            **{name: jnp.zeros(()) for name in (COUNT, SKIPPED, *metrics)},
            **{name: jnp.zeros(gamma_bins) for name in by_gamma},
            **{name: jnp.zeros(adapted_bins) for name in adapted},
        },
        guard=guards.fresh(),
    )


def window_means(state: types.TrainState) -> dict[str, Any]:
    """Return means of the metrics since the last log, and `skipped`. Waits for the device.

    With bins of gamma, `loss_by_gamma` lists the mean loss of each bin, None for an empty one, and
    `gamma_share` the fraction of the images in each.
    """
    sums = {k: v for k, v in state.window.items() if k not in (SQUARES, SAMPLES)}
    sums = jax.device_get(sums)
    count, skipped = float(sums.pop(COUNT)), float(sums.pop(SKIPPED))
    if not count:
        return {SKIPPED: skipped} if skipped else {}
    losses, shares = sums.pop(LOSS_BY_GAMMA, None), sums.pop(GAMMA_SHARE, None)
    means: dict[str, Any] = {name: float(each) / count for name, each in sorted(sums.items())}
    if losses is not None and shares is not None:
        pairs = list(zip(losses.tolist(), shares.tolist(), strict=True))
        means[LOSS_BY_GAMMA] = [loss / share if share else None for loss, share in pairs]
        means[GAMMA_SHARE] = [share / count for _, share in pairs]
    return means | {SKIPPED: skipped}
