"""flax layers whose parameters carry the names of their axes.

The rules of a partitioner refer to these names; they do not affect the arithmetic.

    kernel_height, kernel_width    taps of a convolution
    features      inputs of the network: pixels, their Fourier features, time, conditioning
    embedding     the vector of time and conditioning; embedding_in as input of a layer
    channels      channels passed from block to block; also the input of attention
    channels_in   input channels of a block, including those of a skip connection
    hidden        channels inside a block, between its two convolutions
    heads         channels of queries, keys and values of all heads
    image         channels of the output image
    layers        equal blocks in order, if their parameters are stacked
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from idode_gin import types

Axes = tuple[str, str]
"""Names of the inputs and of the outputs of a layer."""

Features: TypeAlias = Float[Array, "batch height width _"]

LECUN_NORMAL = nn.initializers.lecun_normal()
ZEROS = nn.initializers.zeros


def conv(channels: int, axes: Axes, dtype: Any, name: str, kernel_init: Any = LECUN_NORMAL) -> Any:
    """Return a 3 x 3 convolution with a bias."""
    return nn.Conv(
        channels,
        (3, 3),
        kernel_init=_named(kernel_init, "kernel_height", "kernel_width", *axes),
        bias_init=_named(ZEROS, axes[1]),
        dtype=dtype,
        name=name,
    )


def dense(
    channels: int,
    axes: Axes,
    dtype: Any,
    name: str,
    kernel_init: Any = LECUN_NORMAL,
    use_bias: bool = True,
) -> Any:
    """Return a dense layer, by default with a bias."""
    return nn.Dense(
        channels,
        use_bias=use_bias,
        kernel_init=_named(kernel_init, *axes),
        bias_init=_named(ZEROS, axes[1]),
        dtype=dtype,
        name=name,
    )


class SplitDense(nn.Module):
    """A dense layer with a bias of two inputs side by side, which are not copied into one array."""

    channels: int
    axes: Axes
    dtype: Any

    @nn.compact
    def __call__(self, first: Features, second: Features) -> Features:
        """Return the layer's value of `concatenate([first, second], axis=-1)`."""
        split, inputs = first.shape[-1], first.shape[-1] + second.shape[-1]
        kernel = self.param("kernel", _named(LECUN_NORMAL, *self.axes), (inputs, self.channels))
        bias = self.param("bias", _named(ZEROS, self.axes[1]), (self.channels,))
        kernel, bias = (jnp.asarray(each, self.dtype) for each in (kernel, bias))
        return first @ kernel[:split] + second @ kernel[split:] + bias


class ConvApart(nn.Module):
    """`conv` that returns its bias instead of adding it."""

    channels: int
    axes: Axes
    dtype: Any

    @nn.compact
    def __call__(self, x: Features) -> tuple[Features, Array]:
        """Return the convolution without bias, and the bias `[channels]`."""
        kernel_init = _named(LECUN_NORMAL, "kernel_height", "kernel_width", *self.axes)
        kernel = self.param("kernel", kernel_init, (3, 3, x.shape[-1], self.channels))
        bias = self.param("bias", _named(ZEROS, self.axes[1]), (self.channels,))
        x, kernel, bias = (jnp.asarray(each, self.dtype) for each in (x, kernel, bias))
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", None, None, dimensions), bias


class NormSwish(nn.Module):
    """`group_norm`, swish and dropout in one kernel, with the parameters of `group_norm`."""

    groups: int
    axis: str
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(
        self,
        inputs: Sequence[Features],
        shift: Float[Array, "batch _"] | None = None,
        keep: UInt8[Array, "batch height width _"] | None = None,
    ) -> Features:
        """Return features of the inputs side by side; `shift` and `keep` as in `norm_swish`."""
        from idode_gin.networks import norm_swish

        *image, channels = inputs[0].shape
        count = len(inputs) * channels
        scale = self.param("scale", _named(nn.initializers.ones, self.axis), (count,))
        bias = self.param("bias", _named(ZEROS, self.axis), (count,))
        flat = [each.reshape(image[0], -1, channels) for each in inputs]
        kept = None if keep is None else keep.reshape(flat[0].shape)
        y = norm_swish.norm_swish(
            flat,
            scale,
            bias,
            groups=self.groups,
            shift=shift,
            keep=kept,
            rate=self.dropout_rate,
        )
        return y.reshape(*image, count)


def group_norm(groups: int, axis: str, dtype: Any, name: str) -> Any:
    """Return a normalization over groups of channels, with a scale and bias per channel."""
    return nn.GroupNorm(
        groups,
        scale_init=_named(nn.initializers.ones, axis),
        bias_init=_named(ZEROS, axis),
        dtype=dtype,
        name=name,
    )


def unboxed(boxed: Any) -> types.Params:
    """Return the arrays of parameters that carry names."""

    def is_box(leaf: Any) -> bool:
        return isinstance(leaf, nn.meta.AxisMetadata)

    return jax.tree.map(lambda box: box.unbox(apply_constraint=False), boxed, is_leaf=is_box)


def _named(init: Any, *names: str) -> Any:
    return nn.with_logical_partitioning(init, names)
