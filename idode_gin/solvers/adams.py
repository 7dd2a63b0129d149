"""Adams methods: one evaluation per step, known factors integrated exactly."""

import dataclasses
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from idode_gin import checks, numerics
from idode_gin.solvers import base, spacings

_QUADRATURE = np.polynomial.legendre.leggauss(24)
_BLOCK = 1024  # fixed length, because XLA compiles every operation for every length


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Adams(base.AbstractSolver):
    """Adams predictor-corrector with one evaluation per step.

        y_p     = y_n + sum_{j <= n}     w_j q_j        q_j = slope / rho at earlier t_j
        y_{n+1} = y_n + sum_{j <= n + 1} w_j q_j        q_{n+1} evaluated at y_p

    The weights integrate the polynomial through the q_j, on any grid, times a factor rho(t) of the
    slope that is known for all t (`weight_fns`). If rho comes from removing the linear part of an
    equation, the method is an exponential integrator. One more evaluation is made at the start.

    The order is min(history + 1, 3), because the first steps have fewer slopes before them; later
    steps have order history + 1.

    Args:
        steps: number of steps from t0 to t1.
        history: number of earlier slopes that a step uses.
        spacing: spacing of the steps.
    Refs: Hairer, Norsett and Wanner, sections III.1 and III.5 (predictor, corrector, any grid);
        UniPC for the use of the predictor's evaluation in the next step.
    """

    steps: int = 32
    history: int = 3
    spacing: spacings.AbstractSpacing = dataclasses.field(default_factory=spacings.Equal)

    def __post_init__(self) -> None:
        checks.check_count("steps", self.steps)
        checks.check_count("history", self.history)
        if self.history > 6:
            raise ValueError(
                f"`history` must be at most 6, got history={self.history}: longer polynomials "
                "oscillate between their nodes. Use more steps instead."
            )

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
        """Integrate from `state` at t0 to t1 in `steps` steps."""
        tables = self.tables(t0, t1, weight_fns or (None,) * len(jax.tree.leaves(state)))
        return _run(field, state, tables, self.steps, args, lanes)

    def tables(
        self,
        t0: float,
        t1: float,
        weight_fns: tuple[base.WeightFn, ...],
        length: int | None = None,
    ) -> "Tables":
        """Return the grid and all weights, NumPy arrays, for `advance`.

        Args:
            t0: start time.
            t1: end time.
            weight_fns: known factor of the slope, per leaf of the state.
            length: number of steps to fill the tables up to with zeros; None for `steps`.
        """
        ends = t0 + (t1 - t0) * self.spacing.fractions(self.steps)
        weights = [_weights(ends, self.history, weight_fn) for weight_fn in weight_fns]
        predict, correct = zip(*weights, strict=True)
        blank = 0 if length is None else length - self.steps

        def filled(values: np.ndarray) -> np.ndarray:
            widths = [(0, blank)] + [(0, 0)] * (values.ndim - 1)
            return np.pad(values, widths).astype(numerics.float_dtype())

        return jax.tree.map(filled, Tables(ends, predict, correct))

    def prepared(
        self, t0: float, t1: float, weight_fns: tuple[base.WeightFn, ...], length: int
    ) -> base.AbstractSolver:
        """Return this method for one interval as a pytree of arrays.

        A compiled program that takes it as an argument serves all step counts up to `length`.

        Args:
            t0: start time.
            t1: end time.
            weight_fns: known factor of the slope, per leaf of the state.
            length: number of steps that the arrays have room for.
        """
        tables = self.tables(t0, t1, weight_fns, length)
        return _Prepared(tables=tables, steps=np.asarray(self.steps, np.int32))


class Tables(NamedTuple):
    """A grid, and for each leaf of the state the weights of slopes; newest slopes first.

    Row n belongs to the step that ends at time n; row 0, zeros, to the evaluation at the start.
    """

    ends: Any
    """Array `[steps + 1]`."""
    predict: tuple[Any, ...]
    """Arrays `[steps + 1, history]`."""
    correct: tuple[Any, ...]
    """Arrays `[steps + 1, history + 1]`, the predictor's slope first."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Prepared(base.AbstractSolver):
    """An Adams method for one interval; its arrays may be traced."""

    tables: Tables
    steps: Any

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
        """Integrate over the interval and with the weight functions it was prepared for."""
        return _run(field, state, self.tables, self.steps, args, lanes)


def _run(
    field: base.VectorField,
    state: base.State,
    tables: Tables,
    steps: int | Array,
    args: tuple[Any, ...],
    lanes: int | None,
) -> base.Solution:
    """Integrate `steps` steps of `tables`, which may hold more.

    A static number of steps can be differentiated in reverse; a traced one cannot.
    """

    def solve(problem: tuple[base.State, tuple[Any, ...]]) -> base.Solution:
        state, args = problem
        blank = base.full_like_batch(state, 0.0)
        # In reverse mode a step keeps its carry alone, and computes the field once more.
        step = jax.checkpoint(
            lambda number, carry: advance(field, number, carry, tables, args), prevent_cse=False
        )
        carry = jax.lax.fori_loop(0, steps + 1, step, begin(state, tables))
        return base.Solution(
            state=carry.state,
            num_evaluations=jnp.full(blank.shape, 1, jnp.int32) + steps,
            success=base.all_finite(carry.state),
        )

    return base.in_chunks(solve, (state, args), lanes)


class Carry(NamedTuple):
    """The values that one step passes to the next."""

    state: base.State
    lost: base.State
    """Rounding error of the state, see `base.added`."""
    slopes: base.State
    """Newest first, leaves `[history, B, ...]`; zeros before the start."""


def begin(state: base.State, tables: Tables) -> Carry:
    """Return the values before the evaluation at the start, which is `advance` number 0."""
    history = tables.predict[0].shape[1]
    slopes = jax.tree.map(lambda leaf: jnp.zeros((history, *leaf.shape), leaf.dtype), state)
    return Carry(state, jax.tree.map(jnp.zeros_like, state), slopes)


def advance(
    field: base.VectorField,
    number: Array | int,
    carry: Carry,
    tables: Tables,
    args: tuple[Any, ...],
) -> Carry:
    """Take the step to time `number` of the grid; number 0 evaluates the slope at the start.

    Start and steps are one, so that the network is compiled once.
    """
    structure = jax.tree.structure(carry.state)

    def change(weights: tuple[Any, ...], slopes: Any) -> Any:
        rows = jax.tree.unflatten(structure, [jnp.asarray(each)[number] for each in weights])
        return jax.tree.map(base.combined, rows, slopes)

    state, lost, slopes = carry
    predicted, _ = base.added(state, lost, change(tables.predict, slopes))
    time = base.full_like_batch(predicted, jnp.asarray(tables.ends)[number])
    new = field(time, predicted, *args)
    longer = jax.tree.map(lambda new, past: jnp.concatenate([new[None], past]), new, slopes)
    state, lost = base.added(state, lost, change(tables.correct, longer))
    return Carry(state, lost, jax.tree.map(lambda each: each[:-1], longer))


def _weights(
    ends: np.ndarray, history: int, weight_fn: base.WeightFn
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights of the predictor and of the corrector, float64; shapes as in `Tables`."""
    points, shares = _QUADRATURE
    half = np.diff(ends)[:, None] / 2
    t = ends[:-1, None] + half * (1 + points)
    measure = half * shares * _values(weight_fn, t)
    at_ends = _values(weight_fn, ends)
    steps = len(ends) - 1
    predict, correct = np.zeros((steps + 1, history)), np.zeros((steps + 1, history + 1))
    if ends[0] == ends[-1]:
        return predict, correct
    for step in range(steps):
        behind = np.arange(step, max(-1, step - history), -1)
        ahead = np.concatenate([[step + 1], behind])
        for row, nodes in ((predict[step + 1], behind), (correct[step + 1], ahead)):
            integrals = lagrange(ends[nodes], t[step]) @ measure[step]
            row[: len(nodes)] = integrals / at_ends[nodes]
    return predict, correct


def lagrange(nodes: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return the Lagrange polynomials of `nodes` at `t`: `[nodes, len(t)]`."""
    rows = []
    for index, node in enumerate(nodes):
        others = np.delete(nodes, index)
        rows.append(np.prod((t[:, None] - others) / (node - others), axis=1))
    return np.asarray(rows)


def _values(weight_fn: base.WeightFn, t: np.ndarray) -> np.ndarray:
    """Evaluate a weight function in NumPy, also inside a traced program; float64."""
    if weight_fn is None:
        return np.ones_like(t)
    blocks = np.pad(t.ravel(), (0, -t.size % _BLOCK), mode="edge").reshape(-1, _BLOCK)
    with jax.ensure_compile_time_eval():
        values = [weight_fn(jnp.asarray(each, numerics.float_dtype())) for each in blocks]
    return np.concatenate(values).astype(np.float64)[: t.size].reshape(t.shape)
