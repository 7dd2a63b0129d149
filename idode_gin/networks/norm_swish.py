"""Group normalization, swish and dropout as one GPU kernel, and their gradient as another.

    y = keep / (1 - rate) * swish(scale * n + bias)
    n = (x + shift - mean) / sqrt(variance + EPSILON)

Mean and variance are of a group of channels over all pixels of an image. XLA reads x three times
from memory for this. Here one program handles some channels of an image and reads them twice, the
second time from the GPU's cache if they fit: 64 kB of x, and as much of the cotangent, for 32 x 32
pixels in bfloat16. Arithmetic is in float32 or better and is rounded once, at the end. There is no
forward-mode derivative.

Written in Pallas for Triton, which jax 0.11 calls deprecated. `interpret` runs the same code on any
device, slowly.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

EPSILON = 1e-6
"""Added to the variance, as in flax."""

LEAST_CHANNELS, LEAST_PIXELS = 16, 16

LARGEST_GROUP = 512
"""Channels of a group, of both inputs together, that Triton still compiles."""

CHANNELS = 32
"""Channels of one program if groups are not larger: 64 adjacent bytes of bfloat16."""

PIXELS = 256
"""Pixels that a program holds in registers at a time."""

WARPS = 16
"""Threads of a program, by 32: so many that a multiprocessor runs one or two programs at a time,
and their images stay in its cache."""

CODE = zlib.crc32(pathlib.Path(__file__).read_bytes())

Pixels: TypeAlias = Float[Array, "batch pixels channels"]


@dataclasses.dataclass(frozen=True)
class Form:
    """Settings of a kernel call, besides its arrays.

    Attributes:
        inputs: number of inputs, normalized as if side by side.
        groups: groups of all inputs together.
        shifted: True if a shift is added.
        rate: fraction of features that are dropped; 0 for no dropout.
        interpret: True to run without a GPU.
    """

    inputs: int
    groups: int
    shifted: bool
    rate: float
    interpret: bool


def check(channels: int, groups: int) -> None:
    """Raise ValueError unless the kernels take blocks of these sizes."""
    largest = 2 * channels // groups  # with a skip connection as second input
    is_power = largest & (largest - 1) == 0 and largest <= LARGEST_GROUP
    if groups % 2 or not is_power or channels % max(LEAST_CHANNELS, largest):
        raise ValueError(
            "`fused` needs even `groups`, `channels / groups` a power of two up to "
            f"{LARGEST_GROUP // 2}, and `channels` a multiple of {LEAST_CHANNELS}, got "
            f"channels={channels} and groups={groups}. Set fused=False for other sizes."
        )


def norm_swish(
    inputs: Sequence[Pixels],
    scale: Float[Array, " all_channels"],
    bias: Float[Array, " all_channels"],
    *,
    groups: int,
    shift: Float[Array, "batch channels"] | None = None,
    keep: UInt8[Array, "batch pixels channels"] | None = None,
    rate: float = 0.0,
    interpret: bool = False,
) -> Float[Array, "batch pixels all_channels"]:
    """Return the formula above for one input or for two side by side, in their dtype.

    Args:
        inputs: one array, or two of the same shape.
        scale: factor of the normalized values.
        bias: added to them.
        groups: groups of all channels together; see `check`.
        shift: added to every pixel of a single input before it is normalized.
        keep: of a single input, 1 where dropout keeps a feature, 0 elsewhere; None for no dropout.
        rate: fraction of features that dropout zeroes.
        interpret: run without a GPU.

    Raises:
        ValueError: if the number of pixels is not a multiple of 16, or for two inputs with `shift`
            or `keep`.
    """
    if len(inputs) > 1 and (shift is not None or keep is not None):
        raise ValueError("`shift` and `keep` need a single input, got two.")
    pixels = inputs[0].shape[1]
    if pixels % LEAST_PIXELS:
        raise ValueError(
            f"`fused` needs a height times width that is a multiple of {LEAST_PIXELS}, got "
            f"{pixels} pixels. Set fused=False for such images."
        )
    dropped = rate if keep is not None else 0.0
    form = Form(len(inputs), groups, shift is not None, dropped, interpret)
    arrays = (*inputs, shift, scale, bias, keep if dropped else None)
    return _differentiable(form, tuple(each for each in arrays if each is not None))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(form: Form, arrays: tuple[Array, ...]) -> Array:
    return _kept(form, arrays)[0]


def _kept(form: Form, arrays: tuple[Array, ...]) -> tuple[Array, Any]:
    value, *moments = _over_batch(_forward, form, arrays)
    return value, (arrays, tuple(moments))


def _pulled_back(form: Form, kept: Any, cotangent: Array) -> tuple[Any]:
    arrays, moments = kept
    count = form.inputs + form.shifted
    found = _over_batch(_backward, form, (*arrays, *moments, cotangent))
    of_parameters = [jnp.sum(each, axis=0).reshape(-1) for each in found[count:]]
    gradients = zip([*found[:count], *of_parameters], arrays, strict=False)
    result = tuple(gradient.astype(array.dtype) for gradient, array in gradients)
    return ((*result, None) if form.rate else result,)


_differentiable.defvjp(_kept, _pulled_back)


def _forward(form: Form, *arrays: Array) -> tuple[Array, ...]:
    """Return the value, and the mean and 1 / deviation `[B, inputs, channels]` of each group."""
    batch, pixels, channels = arrays[0].shape
    shapes = [
        jax.ShapeDtypeStruct((batch, pixels, form.inputs, channels), arrays[0].dtype),
        *[jax.ShapeDtypeStruct((batch, form.inputs, channels), _exact(arrays[0].dtype))] * 2,
    ]
    value, *moments = _call(_forward_kernel, form, _per_input(form, arrays), shapes)
    return (value.reshape(batch, pixels, -1), *moments)


def _backward(form: Form, *arrays: Array) -> tuple[Array, ...]:
    """Return gradients of inputs and shift, and per example of scale and bias, as moments."""
    *arguments, mean, inverse, cotangent = arrays
    batch, pixels, channels = arrays[0].shape
    exact = _exact(arrays[0].dtype)
    shapes = [
        *[jax.ShapeDtypeStruct((batch, pixels, channels), arrays[0].dtype)] * form.inputs,
        *[jax.ShapeDtypeStruct((batch, channels), exact)] * form.shifted,
        *[jax.ShapeDtypeStruct((batch, form.inputs, channels), exact)] * 2,
    ]
    cotangent = cotangent.reshape(batch, pixels, form.inputs, channels)
    arguments = [*_per_input(form, arguments), mean, inverse, cotangent]
    return tuple(_call(_backward_kernel, form, arguments, shapes))


def _per_input(form: Form, arrays: Sequence[Array]) -> list[Array]:
    return [each.reshape(form.inputs, -1) if each.ndim == 1 else each for each in arrays]


def _exact(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _call(kernel: Any, form: Form, arrays: Sequence[Array], results: Sequence[Any]) -> Any:
    """Run a kernel: one program for all pixels of some channels of one image."""
    batch, pixels, channels = arrays[0].shape
    group = form.inputs * channels // form.groups
    width = max(group, next(each for each in (CHANNELS, LEAST_CHANNELS) if not channels % each))

    def spec(array: Any, is_parameter: bool) -> pallas.BlockSpec:
        middle = array.shape[:-1] if is_parameter else array.shape[1:-1]
        start = (0,) * len(middle)
        if is_parameter:
            return pallas.BlockSpec((*middle, width), lambda image, part: (*start, part))
        return pallas.BlockSpec((None, *middle, width), lambda image, part: (image, *start, part))

    first = form.inputs + form.shifted
    settings: Any = {"interpret": True}
    if not form.interpret:
        settings = {"compiler_params": triton.CompilerParams(num_warps=WARPS, num_stages=2)}
    return pallas.pallas_call(
        functools.partial(kernel, form, group),
        out_shape=tuple(results),
        in_specs=[spec(each, first <= at < first + 2) for at, each in enumerate(arrays)],
        out_specs=tuple(spec(each, is_parameter=False) for each in results),
        grid=(batch, channels // width),
        **settings,
    )(*arrays)


class _Arguments(NamedTuple):
    """References to a program's part of the arrays."""

    inputs: Sequence[Any]
    shift: Any
    scale: Any
    bias: Any
    keep: Any
    others: Sequence[Any]

    def shifted(self, number: int, rows: Any) -> Array:
        """Return pixels of an input, to be normalized."""
        x = self.inputs[number][rows, :].astype(_exact(self.inputs[0].dtype))
        return x if self.shift is None else x + self.shift[:].astype(x.dtype)[None, :]

    def dropped(self, value: Array, rows: Any, rate: float) -> Array:
        """Return features, or their cotangents, after dropout."""
        if self.keep is None:
            return value
        return jnp.where(self.keep[rows, :] != 0, value * (1 / (1 - rate)), 0.0)


def _arguments(form: Form, refs: Sequence[Any]) -> _Arguments:
    inputs, rest = refs[: form.inputs], iter(refs[form.inputs :])
    shift = next(rest) if form.shifted else None
    scale, bias = next(rest), next(rest)
    keep = next(rest) if form.rate else None
    return _Arguments(inputs, shift, scale, bias, keep, list(rest))


def _over_pixels(pixels: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """Fold `body(rows, carry)` over rows of pixels."""
    size = math.gcd(pixels, PIXELS)

    def step(number: Any, carry: Any) -> Any:
        return body(pallas.ds(number * size, size), carry)

    return jax.lax.fori_loop(0, pixels // size, step, start)


def _mean(sums: Array, pixels: int, group: int) -> Array:
    """Return the mean over pixels and group, at each channel, from sums over pixels."""
    shape = (sums.shape[0],) * 2
    row, column = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) // group for axis in (0, 1))
    return jnp.sum(jnp.where(row == column, sums[None, :], 0.0), axis=1) / (pixels * group)


def _forward_kernel(form: Form, group: int, *refs: Any) -> None:
    arguments = _arguments(form, refs)
    for number in range(form.inputs):
        _forward_of(form, group, arguments, number)


def _forward_of(form: Form, group: int, arguments: _Arguments, number: int) -> None:
    out, means, inverses = arguments.others
    pixels, channels = arguments.inputs[number].shape

    def add(rows: Any, sums: Any) -> Any:
        x = arguments.shifted(number, rows)
        return sums[0] + jnp.sum(x, axis=0), sums[1] + jnp.sum(x * x, axis=0)

    zeros = jnp.zeros((channels,), means.dtype)
    sums = _over_pixels(pixels, add, (zeros, zeros))
    mean, square = (_mean(each, pixels, group) for each in sums)
    inverse = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + EPSILON)
    means[number, :], inverses[number, :] = mean, inverse
    scale = inverse * arguments.scale[number, :].astype(mean.dtype)
    bias = arguments.bias[number, :].astype(mean.dtype)

    def write(rows: Any, carry: Any) -> Any:
        h = (arguments.shifted(number, rows) - mean[None, :]) * scale[None, :] + bias[None, :]
        y = arguments.dropped(jax.nn.swish(h), rows, form.rate)
        out[rows, number, :] = y.astype(out.dtype)
        return carry

    _over_pixels(pixels, write, 0)


def _backward_kernel(form: Form, group: int, *refs: Any) -> None:
    arguments = _arguments(form, refs)
    for number in range(form.inputs):
        _backward_of(form, group, arguments, number)


def _backward_of(form: Form, group: int, arguments: _Arguments, number: int) -> None:
    """Write the gradients of one input; with h = scale * n + bias and s = sigmoid(h):

    dh = dy * (s + h * s * (1 - s))      dbias = sum(dh)      dscale = sum(dh * n)
    dx = (g - mean(g) - n * mean(g * n)) / deviation          g = scale * dh
    """
    means, inverses, cotangents, *results = arguments.others
    gradients, (of_scale, of_bias) = results[: form.inputs], results[-2:]
    pixels, channels = arguments.inputs[number].shape
    mean, inverse = means[number, :], inverses[number, :]
    scale = arguments.scale[number, :].astype(mean.dtype)
    bias = arguments.bias[number, :].astype(mean.dtype)

    def n_and_dh(rows: Any) -> tuple[Array, Array]:
        n = (arguments.shifted(number, rows) - mean[None, :]) * inverse[None, :]
        h = n * scale[None, :] + bias[None, :]
        s = jax.nn.sigmoid(h)
        dy = cotangents[rows, number, :].astype(n.dtype)
        return n, arguments.dropped(dy, rows, form.rate) * (s + h * s * (1 - s))

    def add(rows: Any, sums: Any) -> Any:
        n, dh = n_and_dh(rows)
        return sums[0] + jnp.sum(dh * n, axis=0), sums[1] + jnp.sum(dh, axis=0)

    zeros = jnp.zeros((channels,), mean.dtype)
    of_scale[number, :], of_bias[number, :] = sums = _over_pixels(pixels, add, (zeros, zeros))
    along_n, along_one = (_mean(each * scale, pixels, group) for each in sums)

    def write(rows: Any, total: Array) -> Array:
        n, dh = n_and_dh(rows)
        dx = dh * scale[None, :] - along_one[None, :] - n * along_n[None, :]
        dx = dx * inverse[None, :]
        gradients[number][rows, :] = dx.astype(gradients[number].dtype)
        return total + jnp.sum(dx, axis=0)

    total = _over_pixels(pixels, write, zeros)
    if form.shifted:
        results[form.inputs][:] = total


def _over_batch(function: Any, form: Form, arrays: Sequence[Array]) -> Any:
    """Call `function(form, *arrays)`, which keeps images apart, where their batch is split.

    All arrays but the parameters start with the batch axis, and so do the results. Any other axis
    that is split over devices is gathered.
    """
    told_apart = f"{function.__name__} {form}".encode()
    fingerprint = jnp.asarray([zlib.crc32(told_apart, CODE)], jnp.uint32)
    shapes = tuple(jax.ShapeDtypeStruct(each.shape, each.dtype) for each in arrays)
    return _partitioned(function, form, shapes)(fingerprint, *arrays)


@functools.lru_cache(maxsize=64)
def _partitioned(function: Any, form: Form, given: tuple[jax.ShapeDtypeStruct, ...]) -> Any:
    """Return the function that `_over_batch` calls; equal blocks share it, and what it traces.

    jax puts no more than the address of `partition` into the program that it compiles, and keeps in
    its cache. `fingerprint` tells programs apart whose kernels differ in form or code alone.
    """
    first = form.inputs + form.shifted
    batched = [not first <= at < first + 2 for at in range(len(given))]

    def local(fingerprint: Any, *arrays: Array) -> Any:
        del fingerprint
        return tuple(function(form, *arrays))

    results = jax.eval_shape(local, None, *given)

    def partition(mesh: Any, arguments: Any, found: Any) -> Any:
        batch = arguments[1].sharding.spec[:1]

        def sharding(is_batched: bool) -> NamedSharding:
            return NamedSharding(mesh, PartitionSpec(*batch) if is_batched else PartitionSpec())

        in_shardings = tuple(map(sharding, [False, *batched]))
        return mesh, local, tuple(sharding(True) for _ in results), in_shardings

    names = itertools.count()

    def axes(rank: int, is_batched: bool) -> str:
        others = (f"i{next(names)}" for _ in range(rank - is_batched))
        return " ".join([*["b"] * is_batched, *others])

    left = ", ".join(axes(each.ndim, here) for each, here in zip(given, batched, strict=True))
    right = ", ".join(axes(each.ndim, True) for each in results)
    split = custom_partitioning(local)
    split.def_partition(partition, sharding_rule=f"one, {left} -> {right}")
    return jax.jit(split)
