"""flax layers whose parameters carry the names of their axes.

The names are what a partitioner's rules speak of; they have no effect on the arithmetic.

    kernel_height, kernel_width    taps of a convolution
    features      what a network is given: pixels, their Fourier features, time, conditioning
    embedding     the vector of time and conditioning; embedding_in where a layer takes it in
    channels      of the stream that runs from block to block; also what attention reads
    channels_in   of a block's input: the stream, with what a skip adds to it
    hidden        channels inside a block, between its two convolutions
    heads         channels of queries, keys and values, all heads side by side
    image         channels of the image that a network returns
    layers        equal blocks, one after the other, where their parameters are stacked
"""

from typing import Any

import jax
from flax import linen as nn

from idode_gin import types

Axes = tuple[str, str]
"""Names of the inputs and of the outputs of a layer."""

LECUN_NORMAL = nn.initializers.lecun_normal()
ZEROS = nn.initializers.zeros


def conv(channels: int, axes: Axes, dtype: Any, name: str, kernel_init: Any = LECUN_NORMAL) -> Any:
    """A 3 x 3 convolution with a bias."""
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
    """A matrix, and a bias unless told otherwise."""
    return nn.Dense(
        channels,
        use_bias=use_bias,
        kernel_init=_named(kernel_init, *axes),
        bias_init=_named(ZEROS, axes[1]),
        dtype=dtype,
        name=name,
    )


def group_norm(groups: int, axis: str, dtype: Any, name: str) -> Any:
    """Normalization over groups of channels, with a scale and a bias for each channel."""
    return nn.GroupNorm(
        groups,
        scale_init=_named(nn.initializers.ones, axis),
        bias_init=_named(ZEROS, axis),
        dtype=dtype,
        name=name,
    )


def unboxed(boxed: Any) -> types.Params:
    """Plain arrays from parameters that carry names."""
    return jax.tree.map(lambda box: box.unbox(apply_constraint=False), boxed, is_leaf=_is_box)


def axis_names(boxed: Any) -> Any:
    """Of parameters that carry names, a tree of the same structure with nothing but the names."""
    return nn.get_partition_spec(boxed)


def _named(init: Any, *names: str) -> Any:
    return nn.with_logical_partitioning(init, names)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.meta.AxisMetadata)
