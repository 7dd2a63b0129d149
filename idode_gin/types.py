"""Type aliases of arrays, which define shapes and units in one place.

The annotations are checked in the test run only (see `tests/conftest.py`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
from jaxtyping import Array, Float, Integer, Key, UInt32

Gamma: TypeAlias = Float[Array, "*shape"]
"""log(sigma^2 / alpha^2), nats; or any quantity with one value per gamma."""

GammaEnd: TypeAlias = float | Float[Array, ""]
"""An end of gamma(t), nats: a number, or an array `[]` while it is trained."""

PerExample: TypeAlias = Float[Array, " batch"]
"""One real number per image of the batch."""

Images: TypeAlias = Float[Array, "batch height width channels"]
"""Real-valued images: encodings, latents, noise or network outputs."""

Pixels: TypeAlias = Integer[Array, "batch height width channels"]
"""Integer images, levels 0 … V-1."""

PRNGKey: TypeAlias = Key[Array, ""] | UInt32[Array, "2"]
"""One random key."""

PRNGKeys: TypeAlias = Key[Array, " batch"] | UInt32[Array, "batch 2"]
"""One random key per image of the batch."""

Params: TypeAlias = Mapping[str, Any]
"""Nested mapping of the parameters of the network, and of gamma(t) if it has some."""

Batch: TypeAlias = Mapping[str, Any]
"""`image` [B,H,W,C] integers, `conditioning` [B,K]; and `position` (training) or `index`
(evaluation) [B] integers, which key the random numbers."""

NetworkFn: TypeAlias = Callable[..., Array]
"""`(z [B,H,W,C], gamma [B], *args) -> F [B,H,W,C]`, image by image."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """State of training, a pytree that with seed and data determines the rest of the run.

    Fields are untyped because trees of the same structure also hold shapes or shardings.

    Args:
        step: number of updates, an integer `[]`.
        params: parameters of the network, and of gamma(t) if it has some.
        ema: exponential moving average of `params`, which is evaluated.
        opt_state: state of the optax optimizer.
        window: sums `[]` of the metrics since the last log, `count`, the number of steps summed,
            `skipped`, the number of steps skipped, and sums `[bins]` by bin of gamma of
            `loss_by_gamma` and `gamma_share`; and, where gamma(t) is adapted to the loss, the sums
            `integrand_squares` and `integrand_samples` since its last adaptation. Part of the
            state so that a restart logs the same row.
        guard: state of the rules for bad steps, see `training.guards.fresh`.
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any
    window: dict[str, Any]
    guard: dict[str, Any]
