"""The blocks of the U-Net, in flax linen. Shapes stay `[B, H, W, *]` throughout."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from idode_gin import types

Features = Float[Array, "batch height width _"]


def dropout(x: Features, keys: types.PRNGKeys, rate: float) -> Features:
    """Zeroes a fraction `rate` of the features and scales the others up to keep the mean.

    One key per example: a mask never depends on who else is in the batch.
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


class ResNetBlock(nn.Module):
    """x + conv_2(swish(norm_2(conv_1(swish(norm_1(x))) + conditioning))).

    The last convolution and the projection of the conditioning start at zero, so a fresh block is
    the identity (or `shortcut`, a linear map, where the number of channels changes).
    """

    channels: int
    groups: int
    dropout_rate: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Features,
        conditioning: Float[Array, "batch embedding"],
        keys: types.PRNGKeys | None,
    ) -> Features:
        """Applies the block; `keys` None switches dropout off."""
        h = nn.swish(nn.GroupNorm(self.groups, dtype=self.dtype, name="norm_1")(x))
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv_1")(h)
        shift = nn.Dense(
            self.channels,
            use_bias=False,
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="conditioning",
        )(conditioning)
        h = h + shift[:, None, None, :]
        h = nn.swish(nn.GroupNorm(self.groups, dtype=self.dtype, name="norm_2")(h))
        if keys is not None and self.dropout_rate > 0:
            h = dropout(h, keys, self.dropout_rate)
        h = nn.Conv(
            self.channels,
            (3, 3),
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="conv_2",
        )(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """x + out(softmax(q k^T / sqrt(size of a head)) v), every pixel attending to every pixel.

    `out` starts at zero, so a fresh block is the identity.
    """

    heads: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """Applies the block."""
        channels = x.shape[-1]
        normed = nn.GroupNorm(self.groups, dtype=self.dtype, name="norm")(x)
        pixels = normed.reshape(x.shape[0], -1, channels)

        def project(name: str) -> Array:
            projected = nn.Dense(channels, dtype=self.dtype, name=name)(pixels)
            return projected.reshape(*pixels.shape[:2], self.heads, channels // self.heads)

        query, key, value = project("query"), project("key"), project("value")
        logits = jnp.einsum("bqhc,bkhc->bhqk", query, key) / math.sqrt(channels // self.heads)
        # A softmax over thousands of pixels needs more than bfloat16's eight bits.
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        attended = jnp.einsum("bhqk,bkhc->bqhc", weights, value).reshape(x.shape)
        out = nn.Dense(channels, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="out")
        return x + out(attended)


class Stage(nn.Module):
    """A ResNet block and, where asked for, attention after it: the U-Net's unit of depth."""

    channels: int
    groups: int
    dropout_rate: float
    attention: bool
    attention_heads: int
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Features,
        conditioning: Float[Array, "batch embedding"],
        keys: types.PRNGKeys | None,
    ) -> Features:
        """Applies the unit; `keys` None switches dropout off."""
        x = ResNetBlock(
            channels=self.channels,
            groups=self.groups,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
            name="block",
        )(x, conditioning, keys)
        if self.attention:
            x = AttentionBlock(
                heads=self.attention_heads, groups=self.groups, dtype=self.dtype, name="attention"
            )(x)
        return x
