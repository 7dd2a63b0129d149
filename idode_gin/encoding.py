"""Encoding of pixels: the only place that scales between levels and reals."""

import dataclasses
import math
from typing import Any, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from idode_gin import checks, numerics, types

_AT_ONCE = 512  # levels whose logits are held at one time


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """V integer levels as the centres of V equal bins of (-1, 1).

        f = 2 (x + 1/2) / V - 1         half a bin is 1/V wide

    Args:
        levels: V, the number of values a pixel can take; 256 for 8-bit images.

    Raises:
        ValueError: unless `levels` is an integer, two or more.
    Refs: VDM, appendix on the encoder and decoder.
    """

    levels: int = 256

    def __post_init__(self) -> None:
        checks.check_integer("levels", self.levels, at_least=2)

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
        return jax.nn.log_softmax(self._logits(y, gamma, self._all(y)), axis=-1)

    def log_prob(self, x: types.Pixels, y: types.Images, gamma: types.Gamma) -> types.PerExample:
        """Return log P(x | y) under `level_log_probs`, nats summed over the image.

        At any number of levels, no more than `levels_at_once` logits of a pixel are held.
        """
        at_x = -0.5 * jnp.square((y - self.encode(x)) * jnp.exp(-gamma / 2))
        if self.levels_at_once == self.levels:
            normalizer = jax.nn.logsumexp(self._logits(y, gamma, self._all(y)), axis=-1)
        else:
            normalizer = jax.lax.cond(
                self._is_narrow(gamma, y.dtype), self._log_sum_near, self._log_sum, y, gamma
            )
        return numerics.sum_pixels(at_x - normalizer)

    @property
    def levels_at_once(self) -> int:
        """Number of levels whose logits `log_prob` holds at one time for every pixel."""
        return min(self.levels, _AT_ONCE)

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise ValueError unless `image_shape` is (height, width, channels)."""
        if len(image_shape) != 3:
            raise ValueError(
                f"Images must be (height, width, channels), got shape {image_shape}. "
                "Grey images need a channel axis of size 1."
            )
        for name, size in zip(("height", "width", "channels"), image_shape, strict=True):
            checks.check_count(name, size)

    def _centre(self, level: Array) -> Array:
        return 2 * (level + 0.5) / self.levels - 1

    def _all(self, y: types.Images) -> Array:
        return jnp.arange(self.levels, dtype=y.dtype)

    def _logits(self, y: types.Images, gamma: types.Gamma, level: Array) -> Array:
        centres = self._centre(level)
        return -0.5 * jnp.square((y[..., None] - centres) * jnp.exp(-gamma / 2))

    def _log_sum(self, y: types.Images, gamma: types.Gamma) -> types.Images:
        """Return log sum_k exp(logit_k), summed over one part of the levels at a time."""

        def add(total: Array, first: Array) -> tuple[Array, None]:
            return jnp.logaddexp(total, self._log_sum_from(first, y, gamma)), None

        nothing, firsts = jnp.full_like(y, -jnp.inf), jnp.arange(0, self.levels, _AT_ONCE)
        return jax.lax.scan(jax.checkpoint(add), nothing, firsts.astype(y.dtype))[0]

    def _log_sum_near(self, y: types.Images, gamma: types.Gamma) -> types.Images:
        """Return the sum over the levels nearest to y alone, which suffice if `_is_narrow`."""
        first = self.decode(y).astype(y.dtype)[..., None] - _AT_ONCE // 2
        return self._log_sum_from(first, y, gamma)

    def _log_sum_from(self, first: Array, y: types.Images, gamma: types.Gamma) -> types.Images:
        level = first + jnp.arange(_AT_ONCE, dtype=y.dtype)
        exists = (level >= 0) & (level < self.levels)
        logits = jnp.where(exists, self._logits(y, gamma, level), -jnp.inf)
        return jax.nn.logsumexp(logits, axis=-1)

    def _is_narrow(self, gamma: types.Gamma, dtype: Any) -> Bool[Array, ""]:
        """Return whether the levels that `_log_sum_near` omits sum to less than rounding.

        The logit of a level m bins from the nearest is lower than that one's by at least
        2 m (m - 1) e^{-gamma} / V^2, and there are fewer than V such levels.
        """
        m = _AT_ONCE // 2
        lower = 2 * m * (m - 1) * jnp.exp(-gamma) / float(self.levels) ** 2
        return lower > math.log(2 * self.levels / jnp.finfo(dtype).eps)
