"""Adaptive Dormand-Prince with step control per example."""

import dataclasses
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from idode_gin import checks, numerics, types
from idode_gin.solvers import base, tableaus

_SAFETY = 0.9
_SHRINK_LIMIT = 0.2
_GROWTH_LIMIT = 10.0
_START_EVALUATIONS = 2


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class DormandPrince(base.AbstractSolver):
    """Order 5(4) with local extrapolation; every example has its own steps.

    An example's result does not depend on the others: each has its own error norm, step size and
    end. The norm is the root mean square of `error / (atol + rtol |y|)` over each leaf of the
    state, and the largest over leaves, so that a single number such as a log-density counts as
    much as all pixels together. The batch advances in lock step until its last example arrives.

    Args:
        rtol: relative tolerance per step.
        atol: absolute tolerance per step.
        max_steps: attempted steps after which an example counts as failed.
    Raises:
        ValueError: if a tolerance is not positive.
    Refs: Dormand and Prince 1980; Hairer, Norsett and Wanner, section II.4 (step control, first
        step).
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        """Checks the tolerances."""
        checks.check_positive("rtol", self.rtol)
        checks.check_positive("atol", self.atol)
        checks.check_positive("max_steps", self.max_steps)

    def solve(
        self, field: base.VectorField, state: base.State, t0: float, t1: float
    ) -> base.Solution:
        """The solution at t1 within the tolerances, where `success` is set."""
        tableau = tableaus.dormand_prince()
        start = base.full_like_batch(state, t0)
        end = base.full_like_batch(state, t1)
        slope = field(start, state)
        carry = _Carry(
            t=start,
            state=state,
            slope=slope,
            size=self._first_size(field, start, end, state, slope),
            attempts=jnp.zeros(start.shape, jnp.int32),
            rejected=jnp.zeros(start.shape, bool),
            alive=jnp.ones(start.shape, bool),
        )

        def unfinished(carry: _Carry) -> Bool[Array, " batch"]:
            return (carry.t != end) & carry.alive

        def attempt(carry: _Carry) -> _Carry:
            active = unfinished(carry)
            left = end - carry.t
            last = carry.size >= jnp.abs(left)
            step = jnp.where(active, jnp.where(last, left, jnp.sign(left) * carry.size), 0)
            stages = base.runge_kutta_stages(
                tableau, field, carry.t, carry.state, step, carry.slope
            )
            proposal = base.weighted_sum(carry.state, step, jnp.asarray(tableau.b), stages)
            zero = jax.tree.map(jnp.zeros_like, proposal)
            error = base.weighted_sum(
                zero, step, jnp.asarray(tableaus.DORMAND_PRINCE_ERROR), stages
            )
            norm = self._norm(error, carry.state, proposal)
            norm = jnp.where(jnp.isfinite(norm), norm, jnp.inf)
            accept = active & (norm <= 1)
            size = jnp.abs(step) * _factor(norm, carry.rejected)
            attempts = carry.attempts + active
            # The last stage was taken at the proposal: it is the next step's first.
            return _Carry(
                t=jnp.where(accept, jnp.where(last, end, carry.t + step), carry.t),
                state=_choose(accept, proposal, carry.state),
                slope=_choose(accept, jax.tree.map(lambda each: each[-1], stages), carry.slope),
                size=jnp.where(active, size, carry.size),
                attempts=attempts,
                rejected=active & ~accept,
                alive=carry.alive
                & (accept | ~active | (size > _smallest_step(carry.t)))
                & (attempts < self.max_steps),
            )

        carry = jax.lax.while_loop(lambda carry: jnp.any(unfinished(carry)), attempt, carry)
        return base.Solution(
            state=carry.state,
            num_evaluations=_START_EVALUATIONS + (len(tableau.c) - 1) * carry.attempts,
            success=carry.t == end,
        )

    def _norm(self, error: base.State, before: base.State, after: base.State) -> types.PerExample:
        """Scaled error, `[B]`; at most one where the step is good enough."""

        def leaf(error: Array, before: Array, after: Array) -> Array:
            magnitude = jnp.maximum(jnp.abs(before), jnp.abs(after))
            scaled = error / (self.atol + self.rtol * magnitude)
            return jnp.sqrt(numerics.sum_pixels(scaled**2) / numerics.num_dims(scaled))

        return _largest(jax.tree.map(leaf, error, before, after))

    def _first_size(
        self, field: base.VectorField, t: Array, end: Array, state: base.State, slope: base.State
    ) -> types.PerExample:
        """Size of the first step from the scaled sizes of state, slope and curvature."""
        length = jnp.abs(end - t)
        size_of_state = self._norm(state, state, state)
        size_of_slope = self._norm(slope, state, state)
        tiny = (size_of_state < 1e-5) | (size_of_slope < 1e-5)
        guess = jnp.where(tiny, 1e-6, 0.01 * size_of_state / jnp.where(tiny, 1, size_of_slope))
        guess = jnp.minimum(guess, length)
        step = jnp.sign(end - t) * guess
        euler = jax.tree.map(lambda y, k: y + numerics.expand(step, y) * k, state, slope)
        moved = field(t + step, euler)
        change = jax.tree.map(jnp.subtract, moved, slope)
        curvature = self._norm(change, state, state) / jnp.where(guess == 0, 1, guess)
        steepest = jnp.maximum(size_of_slope, curvature)
        flat = steepest <= 1e-15
        by_curvature = (0.01 / jnp.where(flat, 1, steepest)) ** (1 / 5)
        size = jnp.where(flat, jnp.maximum(1e-6, guess * 1e-3), by_curvature)
        size = jnp.minimum(jnp.minimum(100 * guess, size), length)
        return jnp.where(jnp.isfinite(size), size, 1e-6)


class _Carry(NamedTuple):
    t: Float[Array, " batch"]
    state: base.State
    slope: base.State
    size: Float[Array, " batch"]
    attempts: Integer[Array, " batch"]
    rejected: Bool[Array, " batch"]
    alive: Bool[Array, " batch"]


def _factor(norm: Array, rejected: Array) -> Array:
    """How much the next step is longer; never longer straight after a rejection."""
    ideal = _SAFETY * jnp.where(norm == 0, 1e-10, norm) ** (-1 / 5)
    return jnp.clip(ideal, _SHRINK_LIMIT, jnp.where(rejected, 1.0, _GROWTH_LIMIT))


def _smallest_step(t: Array) -> Array:
    return 10 * jnp.finfo(t.dtype).eps * jnp.maximum(jnp.abs(t), 1)


def _choose(accept: Array, new: base.State, old: base.State) -> base.State:
    return jax.tree.map(
        lambda new, old: jnp.where(numerics.expand(accept, new), new, old), new, old
    )


def _largest(norms: base.State) -> Array:
    return jnp.max(jnp.stack(jax.tree.leaves(norms)), axis=0)
