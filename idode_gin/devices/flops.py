"""Floating-point operations of a program, counted from its shapes before anything is compiled.

Counted are matrix products and convolutions, two operations per multiply and add, as published
utilizations count them. Not taken from XLA's own estimate, which looks into the body of a loop
once, however often it runs.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax


def count(function: Any, *arguments: Any) -> float:
    """Operations of one call, over all devices.

    What a rematerialized program computes again is counted again. The body of a loop whose length
    is not known beforehand is counted once.

    Args:
        function: jitted or not. Where it is, and arguments have the shardings of its first call,
            that one is spared the tracing.
        arguments: arrays, or their shapes and dtypes.
    """
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    return of_jaxpr(jitted.trace(*arguments).jaxpr.jaxpr)


def of_jaxpr(jaxpr: Any) -> float:
    """The same of a program that is traced already."""
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> float:
    name = equation.primitive.name
    if name == "dot_general":
        return _of_product(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    inner = list(map(of_jaxpr, _jaxprs(equation.params)))
    if not inner:
        return 0.0
    if name == "cond":
        return max(inner)
    if name == "scan":
        return equation.params["length"] * sum(inner)
    if name == "shard_map":
        return equation.params["mesh"].size * sum(inner)
    return sum(inner)


def _of_product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _of_convolution(equation: Any) -> float:
    """Positions of the output times positions of the kernel; zeros between inputs are not counted.

    The border is, as if the padding were pixels. A dilated input, such as the gradient of a strided
    convolution has, meets `prod(dilation)` fewer positions.
    """
    kernel, output = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    out_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    per_output = math.prod(kernel) / out_channels
    return 2.0 * math.prod(output) * per_output / math.prod(equation.params["lhs_dilation"])


def _jaxprs(params: Any) -> Iterator[Any]:
    """The programs an equation holds: of a loop, a branch, a call, a rule for derivatives."""
    for leaf in jax.tree.leaves(params, is_leaf=_is_jaxpr):
        if _is_jaxpr(leaf):
            yield getattr(leaf, "jaxpr", leaf)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns")
