"""The contract of an initial-value solver, and one explicit Runge-Kutta step."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from idode_gin import numerics, types
from idode_gin.solvers.tableaus import Tableau

State: TypeAlias = Any
"""A pytree of arrays `[B, ...]`."""

VectorField: TypeAlias = Callable[..., State]
"""`(t [B], y, *args) -> dy/dt`, each example by itself at its own time and with its own `args`,
arrays `[B, ...]`."""

Density: TypeAlias = Callable[[Array], Array] | None
"""A factor of a slope that depends on t alone: `t [n] -> [n]`, or None for one."""


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
    def solve(
        self,
        field: VectorField,
        state: State,
        t0: float,
        t1: float,
        args: tuple[Any, ...] = (),
        *,
        lanes: int | None = None,
        densities: tuple[Density, ...] | None = None,
    ) -> Solution:
        """The solution at t1 of the problem that starts in `state` at t0.

        Args:
            field: dy/dt.
            state: leaves `[B, ...]`.
            t0: where it starts.
            t1: where it ends.
            args: of the field, leaves `[B, ...]`.
            lanes: examples worked on side by side, so that the cost of memory is theirs and what
                an example gives does not depend on B; None for all.
            densities: for each leaf of the state, a factor of its slope that is known for all t.
                Methods that can integrate it exactly do; the others have no need of it.
        """


def weighted_sum(state: State, step: Array, weights: Array, stages: State) -> State:
    """state + step * sum_i weights_i stages_i, leaf by leaf.

    `step` is `[B]`, `weights` `[n]`, and the leaves of `stages` are `[n, B, ...]`.
    """

    def leaf(value: Array, slopes: Array) -> Array:
        return value + numerics.expand(step, value) * combined(weights, slopes)

    return jax.tree.map(leaf, state, stages)


def added(state: State, lost: State, increment: State) -> tuple[State, State]:
    """state + increment, and what rounding took from it, which the next sum gives back.

    Over a thousand steps of one size the same rounding, made a thousand times, would be seen: a
    log-density of 20 nats per dim loses up to 1e-6 of each addition in float32.
    Refs: Kahan 1965.
    """

    def leaf(value: Array, lost: Array, increment: Array) -> tuple[Array, Array]:
        whole = increment + lost
        total = value + whole
        return total, whole - (total - value)

    pairs = jax.tree.map(leaf, state, lost, increment)
    return jax.tree.transpose(jax.tree.structure(state), jax.tree.structure((0, 0)), pairs)


def combined(weights: Array, slopes: Array) -> Array:
    """sum_i weights_i slopes_i, `[n]` and `[n, B, ...]`.

    Entry by entry: a matrix product rounds by an example's place in the batch.
    """
    weights = weights.astype(slopes.dtype)
    total = weights[0] * slopes[0]
    for number in range(1, slopes.shape[0]):
        total = total + weights[number] * slopes[number]
    return total


def runge_kutta_stages(
    tableau: Tableau, field: VectorField, t: Array, state: State, step: Array, first: State
) -> State:
    """All slopes k_i of one step of `[B]` sizes, the first one given; leaves `[n, B, ...]`.

    A loop over the stages, so that a network of many layers is compiled once and not once a stage.
    """
    count = len(tableau.c)
    nodes = jnp.asarray(tableau.c, t.dtype)
    rows = jnp.asarray([[*row, *[0.0] * (count - len(row))] for row in tableau.a], t.dtype)

    def put(slopes: State, number: int | Array, slope: State) -> State:
        return jax.tree.map(lambda each, new: each.at[number].set(new), slopes, slope)

    def stage(number: Array, slopes: State) -> State:
        inner = weighted_sum(state, step, rows[number], slopes)
        return put(slopes, number, field(t + nodes[number] * step, inner))

    empty = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), first)
    return jax.lax.fori_loop(1, count, stage, put(empty, 0, first))


def full_like_batch(state: State, value: float) -> types.PerExample:
    """`[B]` filled with `value`, in the state's dtype."""
    leaf = jax.tree.leaves(state)[0]
    return jnp.full(leaf.shape[0], value, leaf.dtype)


def bind(field: VectorField, args: tuple[Any, ...]) -> VectorField:
    """The field of these arguments."""
    return lambda t, state: field(t, state, *args)


def in_chunks(solve: Callable[[Any], Solution], problem: Any, lanes: int | None) -> Solution:
    """`solve` of a problem whose leaves are `[B, ...]`, `lanes` examples at a time."""
    if lanes is None:
        return solve(problem)
    return numerics.map_chunks(solve, problem, lanes)


def choose(chosen: Bool[Array, " batch"], new: Any, old: Any) -> Any:
    """Leaves `[B, ...]` of `new` where `chosen`, of `old` elsewhere."""
    return jax.tree.map(
        lambda new, old: jnp.where(numerics.expand(chosen, new), new, old), new, old
    )


def all_finite(state: State) -> Bool[Array, " batch"]:
    """Whether an example's part of every leaf is finite."""

    def leaf(value: Array) -> Array:
        return jnp.all(jnp.isfinite(value), axis=tuple(range(1, value.ndim)))

    return jnp.all(jnp.stack([leaf(value) for value in jax.tree.leaves(state)]), axis=0)
