"""Names for arrays: what a shape means is written once, here.

The annotations are checked while the tests run (see `tests/conftest.py`), never in production.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

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
