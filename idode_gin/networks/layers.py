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

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

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
