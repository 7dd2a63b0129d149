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
"""Phases of a lane: first slope; Euler step for the first step size; six stages of an attempt."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class DormandPrince(base.AbstractSolver):
    """Order 5(4) with local extrapolation; every example has its own steps.

    An example's result does not depend on the others: each has its own error norm, step size and
    end. Lanes make one evaluation at a time together, each at its own stage of its own step. When
    the example of a lane has finished, the next one takes its place, so the cost is the mean number
    of evaluations of the examples and not the largest. Measured with two images per lane, the time
    per image is 0.9 to 1.06 times the mean number of evaluations times that of one evaluation
    (benchmarks/results/likelihood.md, rows d).

    Only forward mode differentiates it; reverse mode raises ValueError.

    Args:
        rtol: relative tolerance per step.
        atol: absolute tolerance per step; must be well below sigma_0, the noise at the clean end,
            which is 5e-6 for images of 16 bits.
        max_steps: number of attempted steps after which an example counts as failed.
        norm: norm of `error / (atol + rtol |y|)`; a step is accepted if it is at most one.

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
        checks.check_positive("rtol", self.rtol)
        checks.check_positive("atol", self.atol)
        checks.check_count("max_steps", self.max_steps)

    def solve(
        self,
        field: base.VectorField,
        state: base.State,
        t0: float,
        t1: float,
        args: tuple[Any, ...] = (),
        *,
        lanes: int | None = None,
        weight_fns: tuple[base.WeightFn, ...] | None = None,
    ) -> base.Solution:
        """Integrate from `state` at t0 to t1 within the tolerances, where `success` is True."""
        # Indexed by lanes, which arrays of NumPy cannot be while jax traces.
        state, args = jax.tree.map(jnp.asarray, (state, args))
        queue = _Queue(state, args, t0, t1)
        carry = queue.start(lanes or queue.num_examples)

        def advance(carry: _Carry) -> _Carry:
            """Make one evaluation in every lane, and refill the lanes that have finished."""
            active = carry.number < queue.num_examples
            problem, left = self._advance(field, carry.problem, t1)
            carry, left = carry._replace(problem=problem), left & active
            return jax.lax.cond(jnp.any(left), queue.refill, lambda each, _: each, carry, left)

        carry = jax.lax.while_loop(
            lambda carry: jnp.any(carry.number < queue.num_examples), advance, carry
        )
        found = jax.tree.map(lambda leaf: leaf[: queue.num_examples], carry.found)
        return found._replace(state=forward_only.forward_only(found.state, "DormandPrince"))

    def _advance(
        self, field: base.VectorField, problem: "_Problem", t1: float
    ) -> tuple["_Problem", Bool[Array, " lanes"]]:
        """Make one evaluation in every lane; return also which lanes are done."""
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
            jnp.any(phase <= _TRIAL),
            lambda each: self._begin(each, phase, t1),
            lambda each: each,
            problem,
        )
        nobody = jnp.zeros(phase.shape, bool)
        return jax.lax.cond(
            jnp.any(phase == _LAST),
            lambda each: self._judge(each, inner, phase == _LAST, t1),
            lambda each: (each, nobody),
            problem,
        )

    def _begin(self, problem: "_Problem", phase: Array, t1: float) -> "_Problem":
        """Set the size of the Euler step or of the first step, for lanes in these phases.

        Computed from the scaled norms of state, slope and curvature.
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
        """Accept or reject finished attempts, and set the size of the next ones."""
        step, t = problem.step, problem.t
        last = jnp.abs(step) >= jnp.abs(t1 - t)
        weights = jnp.asarray(tableaus.DORMAND_PRINCE_ERROR)
        zero = jax.tree.map(jnp.zeros_like, proposal)
        error = base.weighted_sum(zero, step, weights, problem.slopes)
        norm = self._norm(error, problem.state, proposal)
        norm = jnp.where(jnp.isfinite(norm), norm, jnp.inf)
        accept = at_end & (norm <= 1)
        # The last stage was evaluated at the proposal: it is the first of the next step.
        slopes = jax.tree.map(
            lambda each: each.at[0].set(base.choose(accept, each[-1], each[0])), problem.slopes
        )
        reached = jnp.where(accept, jnp.where(last, t1, t + step), t)
        size = jnp.abs(step) * _factor(norm, problem.rejected)
        left = t1 - reached
        next_step = jnp.where(size >= jnp.abs(left), left, jnp.sign(left) * size)
        attempts = problem.attempts + at_end
        # In float32, t may be as small as 5e-6 at the clean end, with steps of a tenth of it.
        smallest = 10 * jnp.finfo(t.dtype).eps * jnp.abs(t)
        alive = (accept | (size > smallest)) & (attempts < self.max_steps)
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
        """Return the scaled error, `[B]`; at most one if the step is accurate enough.

        Constant under differentiation: the choice of steps is not part of the solution, and roots
        and quotients at zero would give NaN derivatives.
        """
        error, before, after = jax.lax.stop_gradient((error, before, after))

        def leaf(error: Array, before: Array, after: Array) -> Array:
            magnitude = jnp.maximum(jnp.abs(before), jnp.abs(after))
            return error / (self.atol + self.rtol * magnitude)

        return self.norm(jax.tree.map(leaf, error, before, after))


class _Problem(NamedTuple):
    """The example in every lane, and its progress."""

    t: Float[Array, " lanes"]
    state: base.State
    slopes: base.State
    """Leaves `[7, lanes, ...]`; the slope of an Euler step is the second."""
    step: Float[Array, " lanes"]
    """Signed size of the current attempt or Euler step."""
    phase: Integer[Array, " lanes"]
    attempts: Integer[Array, " lanes"]
    rejected: Bool[Array, " lanes"]
    args: tuple[Any, ...]


class _Carry(NamedTuple):
    number: Integer[Array, " lanes"]
    """Number of the example in the lane; beyond the last one if there are no more."""
    coming: Integer[Array, ""]
    """Number of the next example."""
    problem: _Problem
    found: base.Solution


class _Queue(NamedTuple):
    """The examples of a solve, which lanes take one after another."""

    state: base.State
    args: tuple[Any, ...]
    t0: float
    t1: float

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return jax.tree.leaves(self.state)[0].shape[0]

    def problem(self, number: Array) -> "_Problem":
        """Return the problems of these examples at their start, without slopes.

        A number beyond the last example gives that one again, to be ignored.
        """
        rows = jnp.minimum(number, self.num_examples - 1)
        state, args = jax.tree.map(lambda leaf: leaf[rows], (self.state, self.args))
        blank = jnp.zeros(number.shape, jax.tree.leaves(self.state)[0].dtype)
        return _Problem(
            t=blank + self.t0,
            state=state,
            slopes=(),
            step=blank,
            phase=jnp.full(number.shape, _START),
            attempts=jnp.zeros(number.shape, jnp.int32),
            rejected=jnp.zeros(number.shape, bool),
            args=args,
        )

    def start(self, width: int) -> "_Carry":
        """Return `width` lanes with the first examples."""
        number, count = jnp.arange(width), self.num_examples
        problem = self.problem(number)
        slopes, found = (
            jax.tree.map(lambda leaf, shape=shape: jnp.zeros(shape(leaf), leaf.dtype), tree)
            for tree, shape in (
                (problem.state, lambda leaf: (len(_NODES) - 1, *leaf.shape)),
                (self.state, lambda leaf: (count + 1, *leaf.shape[1:])),
            )
        )
        blank = jnp.zeros(count + 1, jnp.int32)
        return _Carry(
            number=number,
            coming=jnp.asarray(width),
            problem=problem._replace(slopes=slopes),
            found=base.Solution(found, blank, blank.astype(bool)),
        )

    def refill(self, carry: "_Carry", left: Bool[Array, " lanes"]) -> "_Carry":
        """Store the results of the lanes that `left`, and give them the next examples."""
        problem, found = carry.problem, carry.found
        place = jnp.where(left, carry.number, self.num_examples)  # the last row is discarded
        evaluations = _FIRST + (_LAST - _FIRST + 1) * problem.attempts
        # A norm may leave out a part of the state, which step control then does not keep finite.
        arrived = (problem.t == self.t1) & base.all_finite(problem.state)
        found = base.Solution(
            state=jax.tree.map(
                lambda all_, one: all_.at[place].set(one), found.state, problem.state
            ),
            num_evaluations=found.num_evaluations.at[place].set(evaluations),
            success=found.success.at[place].set(arrived),
        )
        number = jnp.where(left, carry.coming + jnp.cumsum(left) - 1, carry.number)
        chosen = base.choose(left, self.problem(number), problem._replace(slopes=()))
        return _Carry(
            number=number,
            coming=carry.coming + jnp.sum(left),
            problem=chosen._replace(slopes=problem.slopes),
            found=found,
        )


def _table() -> tuple[np.ndarray, np.ndarray]:
    """Return nodes `[8]` and weights of the slopes `[8, 7]` by phase."""
    tableau = tableaus.dormand_prince()
    rows = np.zeros((_LAST + 1, len(tableau.c)))
    rows[_TRIAL, 0] = 1
    for stage, row in enumerate(tableau.a[1:]):
        rows[_FIRST + stage, : len(row)] = row
    return np.asarray([0.0, 1.0, *tableau.c[1:]]), rows


_NODES, _ROWS = _table()


def _weighted(rows: Array, slopes: Array) -> Array:
    """Return the sum of slopes `[7, lanes, ...]` with each lane's weights `[lanes, 7]`.

    Slopes without weight belong to another attempt or example and may be NaN.
    """

    def term(number: int) -> Array:
        weight = numerics.expand(rows[:, number], slopes[number])
        return jnp.where(weight == 0, 0, weight * slopes[number])

    return functools.reduce(jnp.add, [term(number) for number in range(slopes.shape[0])])


def _factor(norm: Array, rejected: Array) -> Array:
    """Return the growth of the next step; at most one directly after a rejection."""
    ideal = _SAFETY * jnp.where(norm == 0, 1e-10, norm) ** (-1 / 5)
    return jnp.clip(ideal, _SHRINK_LIMIT, jnp.where(rejected, 1.0, _GROWTH_LIMIT))
