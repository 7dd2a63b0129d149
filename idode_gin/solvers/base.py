"""The interface of an initial-value solver, and parts that several solvers use."""

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
"""`(t [B], y, *args) -> dy/dt`, per example, with its own time and `args` (arrays `[B, ...]`)."""

WeightFn: TypeAlias = Callable[[Array], Array] | None
"""A known factor of a slope that depends on t alone: `t [n] -> [n]`; None for the constant 1."""


class Solution(NamedTuple):
    """The end of a solve and its cost, per example."""

    state: State
    """State at the end, leaves `[B, ...]`."""
    num_evaluations: Integer[Array, " batch"]
    """Evaluations of the vector field in this example's own steps."""
    success: Bool[Array, " batch"]
    """True if the end was reached within the step limit with finite values."""


class AbstractSolver(abc.ABC):
    """Integrates dy/dt = f(t, y) from t0 to t1; t1 may be less than t0."""

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
        weight_fns: tuple[WeightFn, ...] | None = None,
    ) -> Solution:
        """Integrate from `state` at t0 to t1.

        Args:
            field: dy/dt.
            state: leaves `[B, ...]`.
            t0: start time.
            t1: end time.
            args: further arguments of the field, leaves `[B, ...]`.
            lanes: number of examples integrated at the same time, which bounds memory and makes
                results independent of B; None for all.
            weight_fns: known factor of the slope, per leaf of the state. Methods that can
                integrate it exactly do so; others ignore it.
        """


def weighted_sum(state: State, step: Array, weights: Array, stages: State) -> State:
    """Return state + step * sum_i weights_i stages_i, leaf by leaf.

    `step` is `[B]`, `weights` `[n]`, and the leaves of `stages` are `[n, B, ...]`.
    """

    def leaf(value: Array, slopes: Array) -> Array:
        return value + numerics.expand(step, value) * combined(weights, slopes)

    return jax.tree.map(leaf, state, stages)


def added(state: State, lost: State, increment: State) -> tuple[State, State]:
    """Return state + increment and its rounding error, which the next sum compensates.

    Without compensation, equal rounding errors add up over a thousand equal steps: a log-density of
    20 nats per dim loses up to 1e-6 per addition in float32.
    Refs: Kahan 1965.
    """

    def leaf(value: Array, lost: Array, increment: Array) -> tuple[Array, Array]:
        whole = increment + lost
        total = value + whole
        return total, whole - (total - value)

    pairs = jax.tree.map(leaf, state, lost, increment)
    return jax.tree.transpose(jax.tree.structure(state), jax.tree.structure((0, 0)), pairs)


def combined(weights: Array, slopes: Array) -> Array:
    """Return sum_i weights_i slopes_i for `[n]` and `[n, B, ...]`.

    Term by term, because the rounding of a matrix product depends on an example's batch position.
    """
    weights = weights.astype(slopes.dtype)
    total = weights[0] * slopes[0]
    for number in range(1, slopes.shape[0]):
        total = total + weights[number] * slopes[number]
    return total


def runge_kutta_stages(
    tableau: Tableau, field: VectorField, t: Array, state: State, step: Array
) -> State:
    """Return all slopes k_i of one step of sizes `[B]`; leaves `[n, B, ...]`.

    Stages run in a loop, so that a deep network is compiled once and not once per stage.
    """
    count = len(tableau.c)
    nodes = jnp.asarray(tableau.c, t.dtype)
    rows = jnp.asarray([[*row, *[0.0] * (count - len(row))] for row in tableau.a], t.dtype)

    def stage(number: Array, slopes: State) -> State:
        inner = weighted_sum(state, step, rows[number], slopes)
        slope = field(t + nodes[number] * step, inner)
        return jax.tree.map(lambda each, new: each.at[number].set(new), slopes, slope)

    empty = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), state)
    return jax.lax.fori_loop(0, count, stage, empty)


def full_like_batch(state: State, value: float | Array) -> types.PerExample:
    """Return `[B]` filled with `value`, in the state's dtype."""
    leaf = jax.tree.leaves(state)[0]
    return jnp.full(leaf.shape[0], value, leaf.dtype)


def in_chunks(solve: Callable[[Any], Solution], problem: Any, lanes: int | None) -> Solution:
    """Apply `solve` to a problem with leaves `[B, ...]`, `lanes` examples at a time."""
    if lanes is None:
        return solve(problem)
    return numerics.map_chunks(solve, problem, lanes)


def choose(chosen: Bool[Array, " batch"], new: Any, old: Any) -> Any:
    """Return leaves `[B, ...]` of `new` where `chosen`, of `old` elsewhere."""
    return jax.tree.map(
        lambda new, old: jnp.where(numerics.expand(chosen, new), new, old), new, old
    )


def all_finite(state: State) -> Bool[Array, " batch"]:
    """Return True for examples whose part of every leaf is finite."""

    def leaf(value: Array) -> Array:
        return jnp.all(jnp.isfinite(value), axis=tuple(range(1, value.ndim)))

    return jnp.all(jnp.stack([leaf(value) for value in jax.tree.leaves(state)]), axis=0)
