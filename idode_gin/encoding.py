"""Encoding of pixels: the only place that scales between levels and reals."""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from idode_gin import checks, numerics, types


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """V integer levels as the centres of V equal bins of (-1, 1).

        f = 2 (x + 1/2) / V - 1         half a bin is 1/V wide

    Args:
        levels: V, the number of values a pixel can take; 256 for 8-bit images.

    Raises:
        ValueError: if there are fewer than two levels.
    Refs: VDM, appendix on the encoder and decoder.
    """

    levels: int = 256

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"`levels` must be at least 2, got levels={self.levels}.")

    def encode(self, x: types.Pixels) -> types.Images:
        """Return the bin centres of integer pixels."""
        return self._centre(x.astype(numerics.float_dtype()))

    def decode(self, y: types.Images) -> types.Pixels:
        """Return the nearest level of each value of y = z / alpha, clipped to 0 … V-1."""
        level = jnp.floor((y + 1) * (self.levels / 2))
        return jnp.clip(level, 0, self.levels - 1).astype(jnp.int32)

    def level_log_probs(
        self, y: types.Images, gamma: types.Gamma
    ) -> Float[Array, "batch height width channels levels"]:
        """Return log P(level | y) for every level: a softmax of Gaussians around bin centres.

            log softmax_k( -1/2 ((y - f_k) e^{-gamma/2})^2 ),     y = z / alpha

        `y` is already divided by alpha and is not divided again.

        Refs: VDM, decoder of the discretized likelihood.
        """
        return jax.nn.log_softmax(self._logits(y, gamma), axis=-1)

    def log_prob(self, x: types.Pixels, y: types.Images, gamma: types.Gamma) -> types.PerExample:
        """Return log P(x | y) under `level_log_probs`, nats summed over the image."""
        at_x = -0.5 * jnp.square((y - self.encode(x)) * jnp.exp(-gamma / 2))
        normalizer = jax.nn.logsumexp(self._logits(y, gamma), axis=-1)
        return numerics.sum_pixels(at_x - normalizer)

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise ValueError unless `image_shape` is (height, width, channels)."""
        if len(image_shape) != 3:
            raise ValueError(
                f"Images must be (height, width, channels), got shape {image_shape}. "
                "Grey images need a channel axis of size 1."
            )
        for name, size in zip(("height", "width", "channels"), image_shape, strict=True):
            checks.check_positive(name, size)

    def _centre(self, level: Array) -> Array:
        return 2 * (level + 0.5) / self.levels - 1

    def _logits(self, y: types.Images, gamma: types.Gamma) -> Array:
        centres = self._centre(jnp.arange(self.levels, dtype=y.dtype))
        return -0.5 * jnp.square((y[..., None] - centres) * jnp.exp(-gamma / 2))
