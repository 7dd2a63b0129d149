"""The blocks of the U-Net, in flax linen. All shapes are `[B, H, W, *]`."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from idode_gin import types
from idode_gin.networks import layers

Features = layers.Features


def dropout(x: Features, keys: types.PRNGKeys, rate: float) -> Features:
    """Zero a fraction `rate` of the features and scale the others to preserve the mean.

    Each example has its own key, so that its mask does not depend on the batch.
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


class ResNetBlock(nn.Module):
    """x + conv_2(swish(norm_2(conv_1(swish(norm_1(x))) + conditioning))).

    With a skip connection x is both inputs side by side, and the sum starts with `shortcut`, a
    linear map of them. The last convolution and the projection of the conditioning start at zero,
    so a fresh block is the identity, or `shortcut`.
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
        skip: Features | None = None,
    ) -> Features:
        """Apply the block; `keys` None switches dropout off."""
        joined = x if skip is None else jnp.concatenate([x, skip], axis=-1)
        norm_1 = layers.group_norm(self.groups, "channels_in", self.dtype, "norm_1")
        conv_1 = layers.conv(self.channels, ("channels_in", "hidden"), self.dtype, "conv_1")
        h = conv_1(nn.swish(norm_1(joined)))
        # Added apart: XLA otherwise writes the projection out at every pixel for the convolution.
        h = jax.lax.optimization_barrier(h)
        project = layers.dense(
            self.channels,
            ("embedding", "hidden"),
            self.dtype,
            "conditioning",
            kernel_init=layers.ZEROS,
            use_bias=False,
        )
        h = h + project(conditioning)[:, None, None, :]
        h = nn.swish(layers.group_norm(self.groups, "hidden", self.dtype, "norm_2")(h))
        if keys is not None and self.dropout_rate > 0:
            h = dropout(h, keys, self.dropout_rate)
        axes = ("hidden", "channels")
        h = layers.conv(self.channels, axes, self.dtype, "conv_2", kernel_init=layers.ZEROS)(h)
        if skip is not None:
            axes = ("channels_in", "channels")
            x = layers.SplitDense(self.channels, axes, self.dtype, name="shortcut")(x, skip)
        return x + h


class AttentionBlock(nn.Module):
    """x + out(softmax(q k^T / sqrt(size of a head)) v), every pixel attending to every pixel.

    `out` starts at zero, so the block is initially the identity.
    """

    heads: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """Apply the block."""
        channels = x.shape[-1]
        normed = layers.group_norm(self.groups, "channels", self.dtype, "norm")(x)
        pixels = normed.reshape(x.shape[0], -1, channels)

        def project(name: str) -> Array:
            projected = layers.dense(channels, ("channels", "heads"), self.dtype, name)(pixels)
            return projected.reshape(*pixels.shape[:2], self.heads, channels // self.heads)

        query, key, value = project("query"), project("key"), project("value")
        # A softmax over thousands of pixels needs more than bfloat16's eight bits.
        exact = jnp.promote_types(query.dtype, jnp.float32)
        logits = jnp.einsum("bqhc,bkhc->bhqk", query, key, preferred_element_type=exact)
        logits = logits / math.sqrt(channels // self.heads)
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        attended = jnp.einsum("bhqk,bkhc->bqhc", weights, value).reshape(x.shape)
        axes = ("heads", "channels")
        out = layers.dense(channels, axes, self.dtype, "out", kernel_init=layers.ZEROS)
        return x + out(attended)


class Stage(nn.Module):
    """A ResNet block, optionally followed by attention: one level of the U-Net."""

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
        skip: Features | None = None,
    ) -> Features:
        """Apply the level; `keys` None switches dropout off."""
        x = ResNetBlock(
            channels=self.channels,
            groups=self.groups,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
            name="block",
        )(x, conditioning, keys, skip)
        if self.attention:
            x = AttentionBlock(
                heads=self.attention_heads, groups=self.groups, dtype=self.dtype, name="attention"
            )(x)
        return x
