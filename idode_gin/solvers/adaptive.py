"""Adaptive Dormand-Prince with step control per example, on lanes that are refilled."""

import dataclasses
import functools
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from idode_gin import checks, numerics, types
from idode_gin.solvers import base, forward_only, norms, tableaus

_SAFETY = 0.9
_SHRINK_LIMIT = 0.2
_GROWTH_LIMIT = 10.0
_START, _TRIAL, _FIRST, _LAST = 0, 1, 2, 7
"""Phases of a lane: the slope at the start; Euler's trial for the first size; six of an attempt."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class DormandPrince(base.AbstractSolver):
    """Order 5(4) with local extrapolation; every example has its own steps.

    An example's result does not depend on the others: each has its own error norm, step size and
    end. Lanes advance side by side, one evaluation each at a time, wherever in a step each of them
    is; as soon as the example of a lane has arrived, the next one takes its place. So the cost is
    the mean of the examples' evaluations and not the largest.

    It can be differentiated in forward mode alone: reverse mode raises ValueError.

    Args:
        rtol: relative tolerance per step.
        atol: absolute tolerance per step.
        max_steps: attempted steps after which an example counts as failed.
        norm: of `error / (atol + rtol |y|)`; a step is good where it is at most one.
    Raises:
        ValueError: if a tolerance is not positive.
    Refs: Dormand and Prince 1980; Hairer, Norsett and Wanner, section II.4 (step control, first
        step).
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000
    norm: norms.AbstractNorm = dataclasses.field(default_factory=norms.EveryPart)

    def __post_init__(self) -> None:
        """Checks the tolerances."""
        checks.check_positive("rtol", self.rtol)
        checks.check_positive("atol", self.atol)
        checks.check_positive("max_steps", self.max_steps)

    def solve(
        self,
        field: base.VectorField,
        state: base.State,
        t0: float,
        t1: float,
        args: tuple[Any, ...] = (),
        *,
        lanes: int | None = None,
        densities: tuple[base.Density, ...] | None = None,
    ) -> base.Solution:
        """The solution at t1 within the tolerances, where `success` is set."""
        count = jax.tree.leaves(state)[0].shape[0]
        width = lanes or count
        waiting = (state, args)
        dtype = jax.tree.leaves(state)[0].dtype

        def loaded(number: Array) -> Any:
            """The problems of these numbers; any where there are no more."""
            return jax.tree.map(lambda leaf: leaf[jnp.minimum(number, count - 1)], waiting)

        number = jnp.arange(width)
        first_state, first_args = loaded(number)
        blank = jnp.zeros(width, dtype)
        carry = _Carry(
            number=number,
            coming=jnp.asarray(width),
            problem=_Problem(
                t=blank + t0,
                state=first_state,
                slopes=jax.tree.map(
                    lambda leaf: jnp.zeros((len(_NODES) - 1, *leaf.shape), leaf.dtype), first_state
                ),
                step=blank,
                phase=jnp.full(width, _START),
                attempts=jnp.zeros(width, jnp.int32),
                rejected=jnp.zeros(width, bool),
                args=first_args,
            ),
            found=base.Solution(
                state=jax.tree.map(
                    lambda leaf: jnp.zeros((count + 1, *leaf.shape[1:]), leaf.dtype), state
                ),
                num_evaluations=jnp.zeros(count + 1, jnp.int32),
                success=jnp.zeros(count + 1, bool),
            ),
        )

        def refill(carry: _Carry, left: Bool[Array, " lanes"]) -> _Carry:
            """Writes what the lanes that `left` found, and gives them the next problems."""
            problem, found = carry.problem, carry.found
            place = jnp.where(left, carry.number, count)  # the last row is nobody's
            found = base.Solution(
                state=jax.tree.map(
                    lambda all_, one: all_.at[place].set(one), found.state, problem.state
                ),
                num_evaluations=found.num_evaluations.at[place].set(
                    _FIRST + (_LAST - _FIRST + 1) * problem.attempts
                ),
                success=found.success.at[place].set(problem.t == t1),
            )
            number = jnp.where(left, carry.coming + jnp.cumsum(left) - 1, carry.number)
            state, args = loaded(number)
            fresh = problem._replace(
                t=jnp.full_like(problem.t, t0),
                state=state,
                args=args,
                step=jnp.zeros_like(problem.step),
                phase=jnp.full_like(problem.phase, _START),
                attempts=jnp.zeros_like(problem.attempts),
                rejected=jnp.zeros_like(problem.rejected),
            )
            kept = fresh._replace(slopes=())
            chosen = base.choose(left, kept, problem._replace(slopes=()))
            return _Carry(
                number=number,
                coming=carry.coming + jnp.sum(left),
                problem=chosen._replace(slopes=problem.slopes),
                found=found,
            )

        def advance(carry: _Carry) -> _Carry:
            """One evaluation of every lane, and what follows from it."""
            active = carry.number < count
            problem, left = self._advance(field, carry.problem, t1)
            carry = carry._replace(problem=problem)
            left = left & active
            return jax.lax.cond(jnp.any(left), refill, lambda carry, _: carry, carry, left)

        carry = jax.lax.while_loop(lambda carry: jnp.any(carry.number < count), advance, carry)
        found = jax.tree.map(lambda leaf: leaf[:count], carry.found)
        return found._replace(state=forward_only.forward_only(found.state, "DormandPrince"))

    def _advance(
        self, field: base.VectorField, problem: "_Problem", t1: float
    ) -> tuple["_Problem", Bool[Array, " lanes"]]:
        """One evaluation of every lane; and which lanes are done, arrived or not."""
        phase, step = problem.phase, problem.step
        rows = jnp.asarray(_ROWS, step.dtype)[phase]
        inner = jax.tree.map(
            lambda y, slopes: y + numerics.expand(step, y) * _weighted(rows, slopes),
            problem.state,
            problem.slopes,
        )
        t = problem.t + jnp.asarray(_NODES, step.dtype)[phase] * step
        slope = field(t, inner, *problem.args)
        slot = jnp.where(phase == _START, 0, jnp.maximum(phase - 1, 1))
        lanes = jnp.arange(phase.shape[0])
        slopes = jax.tree.map(
            lambda past, new: past.at[slot, lanes].set(new), problem.slopes, slope
        )
        problem = problem._replace(slopes=slopes, phase=phase + 1)
        problem = jax.lax.cond(
            jnp.any(phase <= _TRIAL), lambda each: self._begin(each, phase, t1), _same, problem
        )
        nobody = jnp.zeros(phase.shape, bool)
        return jax.lax.cond(
            jnp.any(phase == _LAST),
            lambda each: self._judge(each, inner, phase == _LAST, t1),
            lambda each: (each, nobody),
            problem,
        )

    def _begin(self, problem: "_Problem", phase: Array, t1: float) -> "_Problem":
        """Sizes of Euler's trial and of the first step, for lanes that are in these phases.

        From the scaled sizes of state, slope and curvature.
        """
        length = jnp.abs(t1 - problem.t)
        direction = jnp.sign(t1 - problem.t)
        state = problem.state
        slope = jax.tree.map(lambda each: each[0], problem.slopes)
        size_of_state = self._norm(state, state, state)
        size_of_slope = self._norm(slope, state, state)
        tiny = (size_of_state < 1e-5) | (size_of_slope < 1e-5)
        guess = jnp.where(tiny, 1e-6, 0.01 * size_of_state / jnp.where(tiny, 1, size_of_slope))
        guess = jnp.minimum(guess, length)

        change = jax.tree.map(lambda each: each[1] - each[0], problem.slopes)
        trial = jnp.abs(problem.step)
        curvature = self._norm(change, state, state) / jnp.where(trial == 0, 1, trial)
        steepest = jnp.maximum(size_of_slope, curvature)
        flat = steepest <= 1e-15
        by_curvature = (0.01 / jnp.where(flat, 1, steepest)) ** (1 / 5)
        size = jnp.where(flat, jnp.maximum(1e-6, trial * 1e-3), by_curvature)
        size = jnp.minimum(jnp.minimum(100 * trial, size), length)
        size = jnp.where(jnp.isfinite(size), size, 1e-6)

        step = jnp.where(phase == _START, direction * guess, problem.step)
        return problem._replace(step=jnp.where(phase == _TRIAL, direction * size, step))

    def _judge(
        self, problem: "_Problem", proposal: base.State, at_end: Bool[Array, " lanes"], t1: float
    ) -> tuple["_Problem", Bool[Array, " lanes"]]:
        """Takes or rejects the attempts that are at their end, and sizes the next ones."""
        step, t = problem.step, problem.t
        last = jnp.abs(step) >= jnp.abs(t1 - t)
        weights = jnp.asarray(tableaus.DORMAND_PRINCE_ERROR)
        zero = jax.tree.map(jnp.zeros_like, proposal)
        error = base.weighted_sum(zero, step, weights, problem.slopes)
        norm = self._norm(error, problem.state, proposal)
        norm = jnp.where(jnp.isfinite(norm), norm, jnp.inf)
        accept = at_end & (norm <= 1)
        # The last stage was taken at the proposal: it is the next step's first.
        slopes = jax.tree.map(
            lambda each: each.at[0].set(base.choose(accept, each[-1], each[0])), problem.slopes
        )
        reached = jnp.where(accept, jnp.where(last, t1, t + step), t)
        size = jnp.abs(step) * _factor(norm, problem.rejected)
        left = t1 - reached
        next_step = jnp.where(size >= jnp.abs(left), left, jnp.sign(left) * size)
        attempts = problem.attempts + at_end
        alive = (accept | (size > _smallest_step(t))) & (attempts < self.max_steps)
        problem = problem._replace(
            t=reached,
            state=base.choose(accept, proposal, problem.state),
            slopes=slopes,
            step=jnp.where(at_end, next_step, step),
            phase=jnp.where(at_end, _FIRST, problem.phase),
            attempts=attempts,
            rejected=jnp.where(at_end, ~accept, problem.rejected),
        )
        return problem, at_end & ((reached == t1) | ~alive)

    def _norm(self, error: base.State, before: base.State, after: base.State) -> types.PerExample:
        """Scaled error, `[B]`; at most one where the step is good enough.

        A constant to differentiation: which steps are taken is no part of what is solved, and its
        roots and quotients at zero have derivatives that are NaN.
        """
        error, before, after = jax.lax.stop_gradient((error, before, after))

        def leaf(error: Array, before: Array, after: Array) -> Array:
            magnitude = jnp.maximum(jnp.abs(before), jnp.abs(after))
            return error / (self.atol + self.rtol * magnitude)

        return self.norm(jax.tree.map(leaf, error, before, after))


class _Problem(NamedTuple):
    """What every lane works on."""

    t: Float[Array, " lanes"]
    state: base.State
    slopes: base.State
    """Leaves `[7, lanes, ...]`; of a trial, its slope is the second."""
    step: Float[Array, " lanes"]
    """Signed; of the attempt or the trial that is going on."""
    phase: Integer[Array, " lanes"]
    attempts: Integer[Array, " lanes"]
    rejected: Bool[Array, " lanes"]
    args: tuple[Any, ...]


class _Carry(NamedTuple):
    number: Integer[Array, " lanes"]
    """Of the example in the lane; one that is none where there are no more."""
    coming: Integer[Array, ""]
    """Number of the example that is next."""
    problem: _Problem
    found: base.Solution


def _table() -> tuple[np.ndarray, np.ndarray]:
    """Nodes `[8]` and weights of the slopes `[8, 7]` by phase."""
    tableau = tableaus.dormand_prince()
    rows = np.zeros((_LAST + 1, len(tableau.c)))
    rows[_TRIAL, 0] = 1
    for stage, row in enumerate(tableau.a[1:]):
        rows[_FIRST + stage, : len(row)] = row
    return np.asarray([0.0, 1.0, *tableau.c[1:]]), rows


_NODES, _ROWS = _table()


def _weighted(rows: Array, slopes: Array) -> Array:
    """Every lane's own weights `[lanes, 7]` of its slopes `[7, lanes, ...]`.

    Slopes without weight are of another attempt, or of another example: they may be NaN.
    """

    def term(number: int) -> Array:
        weight = numerics.expand(rows[:, number], slopes[number])
        return jnp.where(weight == 0, 0, weight * slopes[number])

    return functools.reduce(jnp.add, [term(number) for number in range(slopes.shape[0])])


def _same(problem: _Problem) -> _Problem:
    return problem


def _factor(norm: Array, rejected: Array) -> Array:
    """How much the next step is longer; never longer straight after a rejection."""
    ideal = _SAFETY * jnp.where(norm == 0, 1e-10, norm) ** (-1 / 5)
    return jnp.clip(ideal, _SHRINK_LIMIT, jnp.where(rejected, 1.0, _GROWTH_LIMIT))


def _smallest_step(t: Array) -> Array:
    return 10 * jnp.finfo(t.dtype).eps * jnp.maximum(jnp.abs(t), 1)
