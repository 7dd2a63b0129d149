"""Count the floating-point operations of a program from its shapes, before compilation.

Matrix products and convolutions are counted, two operations per multiply-add, as in published
utilizations. XLA's own estimate is not used because it counts the body of a loop once, however
often the loop runs.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax

PRODUCTS_OF_ATTENTION = {
    "dot_product_attention_fwd_wrapper": 2,
    "dot_product_attention_bwd_wrapper": 4,
}
"""Matrix products of cuDNN's attention, whose arguments are `[B, pixels, heads, size]`, by the
names of jax's primitives: those of the plain formula, without the one that the gradient repeats."""


def count(function: Any, *arguments: Any) -> float:
    """Return the operations of one call, over all devices.

    Rematerialized operations count twice. The body of a loop of unknown length counts once.

    Args:
        function: jitted or not. If jitted, and the arguments have the shardings of its first call,
            that call need not trace again.
        arguments: arrays, or their shapes and dtypes.
    """
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    return of_jaxpr(jitted.trace(*arguments).jaxpr.jaxpr)


def of_jaxpr(jaxpr: Any) -> float:
    """Return the operations of a traced program."""
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> float:
    name = equation.primitive.name
    if name == "dot_general":
        return _of_product(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name in PRODUCTS_OF_ATTENTION:
        query, key = (each.aval.shape for each in equation.invars[:2])
        return PRODUCTS_OF_ATTENTION[name] * 2.0 * math.prod(query) * key[1]
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
    """Count output positions times kernel positions, without the zeros between dilated inputs.

    Padding counts like pixels. A dilated input, as in the gradient of a strided convolution, has
    `prod(dilation)` times fewer positions that are not zero.
    """
    kernel, output = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    out_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    per_output = math.prod(kernel) / out_channels
    return 2.0 * math.prod(output) * per_output / math.prod(equation.params["lhs_dilation"])


def _jaxprs(params: Any) -> Iterator[Any]:
    """Yield the programs inside an equation: of a loop, branch, call or derivative rule."""
    for leaf in jax.tree.leaves(params, is_leaf=_is_jaxpr):
        if _is_jaxpr(leaf):
            yield getattr(leaf, "jaxpr", leaf)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns")
