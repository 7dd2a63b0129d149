"""The blocks of the U-Net, in flax linen. All shapes are `[B, H, W, *]`."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from idode_gin import types
from idode_gin.networks import layers

Features = layers.Features


def kept(keys: types.PRNGKeys, rate: float, shape: tuple[int, ...]) -> UInt8[Array, "batch ..."]:
    """Return 1 where dropout keeps a feature, 0 elsewhere; `shape` is that of an example.

    Each example has its own key, so that its mask does not depend on the batch. A feature takes 16
    random bits, so that `rate` is rounded to a multiple of 2^-16.
    """
    size = math.prod(shape)
    limit = jnp.uint32(round((1 - rate) * 2**16))

    def of_example(key: types.PRNGKey) -> UInt8[Array, "..."]:
        words = jax.random.bits(key, (-(-size // 2),), jnp.uint32)
        low, high = words & 0xFFFF < limit, words >> 16 < limit
        # Two bytes of one number: XLA otherwise writes the words, or draws each of them twice.
        pairs = low.astype(jnp.uint16) | high.astype(jnp.uint16) << 8
        return jax.lax.bitcast_convert_type(pairs, jnp.uint8).reshape(-1)[:size].reshape(shape)

    return jax.vmap(of_example)(keys)


def dropout(x: Features, keys: types.PRNGKeys, rate: float) -> Features:
    """Zero a fraction `rate` of the features and scale the others to preserve the mean."""
    return jnp.where(kept(keys, rate, x.shape[1:]) != 0, x / (1 - rate), jnp.zeros_like(x))


class ResNetBlock(nn.Module):
    """x + conv_2(swish(norm_2(conv_1(swish(norm_1(x))) + conditioning))).

    With a skip connection x is both inputs side by side, and the sum starts with `shortcut`, a
    linear map of them. The last convolution and the projection of the conditioning start at zero,
    so a fresh block is the identity, or `shortcut`. `fused` computes norm, swish and dropout in one
    kernel.
    """

    channels: int
    groups: int
    dropout_rate: float
    dtype: Any
    fused: bool = False

    @nn.compact
    def __call__(
        self,
        x: Features,
        conditioning: Float[Array, "batch embedding"],
        keys: types.PRNGKeys | None,
        skip: Features | None = None,
    ) -> Features:
        """Apply the block; `keys` None switches dropout off."""
        keys = keys if self.dropout_rate > 0 else None
        project = layers.dense(
            self.channels,
            ("embedding", "hidden"),
            self.dtype,
            "conditioning",
            kernel_init=layers.ZEROS,
            use_bias=False,
        )
        inputs = (x,) if skip is None else (x, skip)
        hidden = self._fused_hidden if self.fused else self._hidden
        h = hidden(inputs, project(conditioning), keys)
        axes = ("hidden", "channels")
        h = layers.conv(self.channels, axes, self.dtype, "conv_2", kernel_init=layers.ZEROS)(h)
        if skip is not None:
            axes = ("channels_in", "channels")
            x = layers.SplitDense(self.channels, axes, self.dtype, name="shortcut")(x, skip)
        return x + h

    def _hidden(
        self, inputs: Sequence[Features], shift: Array, keys: types.PRNGKeys | None
    ) -> Features:
        """Return the input of the second convolution."""
        norm_1 = layers.group_norm(self.groups, "channels_in", self.dtype, "norm_1")
        conv_1 = layers.conv(self.channels, ("channels_in", "hidden"), self.dtype, "conv_1")
        h = conv_1(nn.swish(norm_1(jnp.concatenate(inputs, axis=-1))))
        # Added apart: XLA otherwise writes the projection out at every pixel for the convolution.
        h = jax.lax.optimization_barrier(h) + shift[:, None, None, :]
        h = nn.swish(layers.group_norm(self.groups, "hidden", self.dtype, "norm_2")(h))
        return h if keys is None else dropout(h, keys, self.dropout_rate)

    def _fused_hidden(
        self, inputs: Sequence[Features], shift: Array, keys: types.PRNGKeys | None
    ) -> Features:
        """Return what `_hidden` does; the kernel adds the bias and its gradient."""
        h = layers.NormSwish(self.groups, "channels_in", name="norm_1")(inputs)
        axes = ("channels_in", "hidden")
        h, bias = layers.ConvApart(self.channels, axes, self.dtype, name="conv_1")(h)
        keep = None if keys is None else kept(keys, self.dropout_rate, h.shape[1:])
        norm_2 = layers.NormSwish(self.groups, "hidden", self.dropout_rate, name="norm_2")
        return norm_2((h,), shift + bias, keep)


def attention(
    query: Float[Array, "batch pixels heads size"],
    key: Float[Array, "batch pixels heads size"],
    value: Float[Array, "batch pixels heads size"],
) -> Float[Array, "batch pixels heads size"]:
    """Return softmax(q k^T / sqrt(size)) v of each head."""
    # A softmax over thousands of pixels needs more than bfloat16's eight bits.
    exact = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bqhc,bkhc->bhqk", query, key, preferred_element_type=exact)
    weights = jax.nn.softmax(logits / math.sqrt(query.shape[-1]), axis=-1).astype(value.dtype)
    return jnp.einsum("bhqk,bkhc->bqhc", weights, value)


def compute_capability() -> float:
    """Return CUDA's version of the first device, such as 9.0; 0 unless it is an NVIDIA GPU."""
    found = str(getattr(jax.devices()[0], "compute_capability", ""))
    return float(found) if re.fullmatch(r"\d+\.\d+", found) else 0.0


def can_fuse() -> bool:
    """Return True if this device runs the fused kernels: Triton takes GPUs from Ampere on."""
    return compute_capability() >= 8


def cudnn_takes(size: int) -> bool:
    """Return True if cuDNN's attention takes heads of `size` channels, on Hopper larger ones."""
    return size % 8 == 0 and size <= (256 if compute_capability() >= 9 else 128)


class AttentionBlock(nn.Module):
    """x + out(softmax(q k^T / sqrt(size of a head)) v), every pixel attending to every pixel.

    `out` starts at zero, so the block is initially the identity. `fused` computes softmax and both
    products in cuDNN's kernel if that takes the heads; it needs a dtype of 16 bits.
    """

    heads: int
    groups: int
    dtype: Any
    fused: bool = False

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
        if self.fused and query.dtype.itemsize == 2 and cudnn_takes(query.shape[-1]):
            attended = jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
        else:
            attended = attention(query, key, value)
        axes = ("heads", "channels")
        out = layers.dense(channels, axes, self.dtype, "out", kernel_init=layers.ZEROS)
        return x + out(attended.reshape(x.shape))


class Stage(nn.Module):
    """A ResNet block, optionally followed by attention: one level of the U-Net."""

    channels: int
    groups: int
    dropout_rate: float
    attention: bool
    attention_heads: int
    dtype: Any
    fused: bool = False

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
            fused=self.fused,
            name="block",
        )(x, conditioning, keys, skip)
        if self.attention:
            x = AttentionBlock(
                heads=self.attention_heads,
                groups=self.groups,
                dtype=self.dtype,
                fused=self.fused,
                name="attention",
            )(x)
        return x
