"""The contract of an initial-value solver, and one explicit Runge-Kutta step."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from idode_gin import numerics, types
from idode_gin.solvers.tableaus import Tableau

State: TypeAlias = Any
"""A pytree of arrays `[B, ...]`."""

VectorField: TypeAlias = Callable[[types.PerExample, State], State]
"""`(t [B], y) -> dy/dt`, each example by itself at its own time."""


class Solution(NamedTuple):
    """Where a solve ended, and what it cost, per example."""

    state: State
    """The state at the end, leaves `[B, ...]`."""
    num_evaluations: Integer[Array, " batch"]
    """Evaluations of the vector field that this example's own steps needed."""
    success: Bool[Array, " batch"]
    """Whether the end was reached within the step limit, with finite steps."""


class AbstractSolver(abc.ABC):
    """Integrates dy/dt = f(t, y) from t0 to t1, which may lie on either side of t0."""

    @abc.abstractmethod
    def solve(self, field: VectorField, state: State, t0: float, t1: float) -> Solution:
        """The solution at t1 of the problem that starts in `state` at t0."""


def weighted_sum(state: State, step: Array, weights: Sequence[float], stages: list[State]) -> State:
    """state + step * sum_i weights_i stages_i, leaf by leaf; `step` is `[B]`."""

    def leaf(value: Array, *slopes: Array) -> Array:
        total = sum(w * k for w, k in zip(weights, slopes, strict=True) if w)
        return value + numerics.expand(step, value) * total

    return jax.tree.map(leaf, state, *stages)


def runge_kutta_stages(
    tableau: Tableau, field: VectorField, t: Array, state: State, step: Array, first: State
) -> list[State]:
    """All slopes k_i of one step of `[B]` sizes, the first one given."""
    stages = [first]
    for node, row in zip(tableau.c[1:], tableau.a[1:], strict=True):
        inner = weighted_sum(state, step, row, stages)
        stages.append(field(t + node * step, inner))
    return stages


def full_like_batch(state: State, value: float) -> types.PerExample:
    """`[B]` filled with `value`, in the state's dtype."""
    leaf = jax.tree.leaves(state)[0]
    return jnp.full(leaf.shape[0], value, leaf.dtype)


def all_finite(state: State) -> Bool[Array, " batch"]:
    """Whether an example's part of every leaf is finite."""

    def leaf(value: Array) -> Array:
        return jnp.all(jnp.isfinite(value), axis=tuple(range(1, value.ndim)))

    return jnp.all(jnp.stack([leaf(value) for value in jax.tree.leaves(state)]), axis=0)
