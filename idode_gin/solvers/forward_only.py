"""A clear error for reverse-mode differentiation of an adaptive solve."""

from typing import Any

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


def forward_only(values: Any, solver: str) -> Any:
    """Return `values` unchanged, also in forward mode; in reverse mode raise ValueError.

    Wraps the result of a loop of unknown length. Transposition reaches it before the loop, for
    which JAX's own error would refer to code that the caller did not write.

    Args:
        values: a pytree of arrays.
        solver: name of the solver in the message.
    """
    message = (
        f"{solver} cannot be differentiated in reverse mode (jax.grad, jax.vjp): its number of "
        "steps is not known in advance. Use a grid, solvers.adams.Adams(steps=64) or "
        "solvers.fixed_grid.FixedGrid(steps=64), or forward mode (jax.jvp, jax.jacfwd)."
    )

    @jax.custom_jvp
    def unchanged(leaf: Array) -> Array:
        return leaf

    @unchanged.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        return primals[0], _guarded.bind(tangents[0], message=message)

    return jax.tree.map(unchanged, values)


def _refuse(*_: Any, message: str) -> Any:
    raise ValueError(message)


# A linear identity on tangents that cannot be transposed.
_guarded = core.Primitive("forward_only")
_guarded.def_impl(lambda tangent, *, message: tangent)
_guarded.def_abstract_eval(lambda tangent, *, message: tangent)
mlir.register_lowering(_guarded, lambda _, tangent, *, message: [tangent])
batching.defvectorized(_guarded)
ad.deflinear2(_guarded, _refuse)
