"""Names for arrays: what a shape means is written once, here.

The annotations are checked while the tests run (see `tests/conftest.py`), never in production.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
from jaxtyping import Array, Float, Integer, Key, UInt32

Gamma: TypeAlias = Float[Array, "*shape"]
"""log(sigma^2 / alpha^2), nats; or any quantity with one value per gamma."""

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
"""Nested mapping of network parameters."""

Batch: TypeAlias = Mapping[str, Any]
"""`image` [B,H,W,C] integers, `conditioning` [B,K]; and `position` (training) or `index`
(evaluation) [B] integers, which key the random numbers."""

NetworkFn: TypeAlias = Callable[..., Array]
"""`(z [B,H,W,C], gamma [B], *args) -> F [B,H,W,C]`, image by image."""


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
            summed over; `skipped`, the steps left out; and by bin of gamma `[bins]` the sums of
            the batches' `loss_by_gamma` and `gamma_share`. They are part of the state so that a
            restart in mid-window logs the same row.
        guard: what the rules for bad steps remember, see `training.guards.fresh`.
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any
    window: dict[str, Any]
    guard: dict[str, Any]
