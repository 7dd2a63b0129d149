"""A kind error where reverse-mode differentiation cannot pass."""

from typing import Any

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


def forward_only(values: Any, solver: str) -> Any:
    """The same values, and the same in forward mode; in reverse mode a ValueError with a way out.

    Goes around what a loop of unknown length gives. Transposition meets it before that loop, of
    which JAX's own error speaks, and which no caller of a solver has written.

    Args:
        values: a pytree of arrays.
        solver: that gave them, by name.
    """
    message = (
        f"{solver} cannot be differentiated in reverse mode (jax.grad, jax.vjp): nobody knows "
        "beforehand how many steps it takes. Use a grid, solvers.adams.Adams(steps=64) or "
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


# An operation of tangents alone, linear and the identity, which nothing transposes.
_guarded = core.Primitive("forward_only")
_guarded.def_impl(lambda tangent, *, message: tangent)
_guarded.def_abstract_eval(lambda tangent, *, message: tangent)
mlir.register_lowering(_guarded, lambda _, tangent, *, message: [tangent])
batching.defvectorized(_guarded)
ad.deflinear2(_guarded, _refuse)
