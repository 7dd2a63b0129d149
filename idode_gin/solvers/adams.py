"""Adams methods: one evaluation a step, and known factors integrated exactly."""

import dataclasses
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from idode_gin import checks, numerics
from idode_gin.solvers import base, spacings

_QUADRATURE = np.polynomial.legendre.leggauss(24)
_BLOCK = 1024  # times at once: XLA compiles every operation for every length


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Adams(base.AbstractSolver):
    """Predicts with `history` slopes behind, evaluates once, corrects with that slope as well.

        y_p     = y_n + sum_{j <= n}     w_j q_j        q_j = slope / rho at the t_j behind
        y_{n+1} = y_n + sum_{j <= n + 1} w_j q_j        q_{n+1} taken at y_p

    The weights are those of the polynomial through the q_j, on any grid, times a factor rho(t)
    of the slope that is known for all t (`densities`): where the linear part of an equation is
    taken out of it, that makes the method exponential. One evaluation a step, and one at the start.

    The order is min(history + 1, 3): the first steps have fewer slopes behind them. With longer
    histories those behind the start have order history + 1.

    Args:
        steps: number of steps from t0 to t1.
        history: slopes behind each step that are used.
        spacing: of the steps.
    Refs: Hairer, Norsett and Wanner, sections III.1 and III.5 (predictor, corrector, any grid);
        UniPC for the use of the predictor's evaluation in the next step.
    """

    steps: int = 32
    history: int = 3
    spacing: spacings.AbstractSpacing = dataclasses.field(default_factory=spacings.Equal)

    def __post_init__(self) -> None:
        """Checks the counts."""
        checks.check_positive("steps", self.steps)
        checks.check_positive("history", self.history)
        if self.history > 6:
            raise ValueError(
                f"`history` must be at most 6, got history={self.history}: longer polynomials "
                "swing between their points. Take more steps instead."
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
        densities: tuple[base.Density, ...] | None = None,
    ) -> base.Solution:
        """The solution at t1 after `steps` steps."""
        tables = self.tables(t0, t1, densities or (None,) * len(jax.tree.leaves(state)))
        return run(field, state, tables, self.steps, args, lanes)

    def tables(self, t0: float, t1: float, densities: tuple[base.Density, ...]) -> "Tables":
        """The grid and all weights, for `run`."""
        ends = t0 + (t1 - t0) * self.spacing.fractions(self.steps)
        predict, correct = zip(
            *(_weights(ends, self.history, density) for density in densities), strict=True
        )
        dtype = numerics.float_dtype()
        return Tables(
            ends=jnp.asarray(ends, dtype),
            predict=tuple(jnp.asarray(each, dtype) for each in predict),
            correct=tuple(jnp.asarray(each, dtype) for each in correct),
        )


class Tables(NamedTuple):
    """A grid, and for each leaf of the state what a step makes of slopes; newest slopes first."""

    ends: Array
    """`[steps + 1]`."""
    predict: tuple[Array, ...]
    """`[steps, history]` each."""
    correct: tuple[Array, ...]
    """`[steps, history + 1]` each, the predictor's slope first."""


def run(
    field: base.VectorField,
    state: base.State,
    tables: Tables,
    steps: int | Array,
    args: tuple[Any, ...] = (),
    lanes: int | None = None,
) -> base.Solution:
    """The solution after `steps` steps of `tables`, which may hold more.

    The number may be traced, so that grids of many lengths share a compiled program; a number that
    is known can be differentiated in reverse.
    """

    def solve(problem: tuple[base.State, tuple[Any, ...]]) -> base.Solution:
        state, args = problem
        blank = base.full_like_batch(state, 0.0)
        carry = begin(field, state, tables, args)
        carry = jax.lax.fori_loop(
            0, steps, lambda number, carry: advance(field, number, carry, tables, args), carry
        )
        return base.Solution(
            state=carry.state,
            num_evaluations=jnp.full(blank.shape, 1, jnp.int32) + steps,
            success=base.all_finite(carry.state),
        )

    return base.in_chunks(solve, (state, args), lanes)


class Carry(NamedTuple):
    """What one step hands to the next."""

    state: base.State
    lost: base.State
    """What rounding took from the state."""
    slopes: base.State
    """The newest first, leaves `[history, B, ...]`; zeros before the start."""


def begin(
    field: base.VectorField, state: base.State, tables: Tables, args: tuple[Any, ...]
) -> Carry:
    """Before the first step."""
    history = tables.predict[0].shape[1]
    slopes = jax.tree.map(
        lambda leaf: jnp.zeros((history, *leaf.shape), leaf.dtype).at[0].set(leaf),
        _slope(field, 0, state, tables, args),
    )
    return Carry(state, jax.tree.map(jnp.zeros_like, state), slopes)


def advance(
    field: base.VectorField,
    number: Array | int,
    carry: Carry,
    tables: Tables,
    args: tuple[Any, ...],
) -> Carry:
    """Step `number`, counted from zero."""
    structure = jax.tree.structure(carry.state)

    def change(weights: tuple[Array, ...], slopes: Any) -> Any:
        rows = jax.tree.unflatten(structure, [each[number] for each in weights])
        return jax.tree.map(base.combined, rows, slopes)

    state, lost, slopes = carry
    predicted, _ = base.added(state, lost, change(tables.predict, slopes))
    new = _slope(field, number + 1, predicted, tables, args)
    longer = jax.tree.map(lambda new, past: jnp.concatenate([new[None], past]), new, slopes)
    state, lost = base.added(state, lost, change(tables.correct, longer))
    return Carry(state, lost, jax.tree.map(lambda each: each[:-1], longer))


def _slope(
    field: base.VectorField,
    number: Array | int,
    state: base.State,
    tables: Tables,
    args: tuple[Any, ...],
) -> base.State:
    blank = base.full_like_batch(state, 0.0)
    return field(blank + tables.ends[number].astype(blank.dtype), state, *args)


def _weights(
    ends: np.ndarray, history: int, density: base.Density
) -> tuple[np.ndarray, np.ndarray]:
    """Of all steps: `[steps, history]` to predict, `[steps, history + 1]` to correct; float64."""
    points, shares = _QUADRATURE
    half = np.diff(ends)[:, None] / 2
    t = ends[:-1, None] + half * (1 + points)
    measure = half * shares * _values(density, t)
    at_ends = _values(density, ends)
    steps = len(ends) - 1
    predict, correct = np.zeros((steps, history)), np.zeros((steps, history + 1))
    if ends[0] == ends[-1]:
        return predict, correct
    for step in range(steps):
        behind = np.arange(step, max(-1, step - history), -1)
        ahead = np.concatenate([[step + 1], behind])
        for row, nodes in ((predict[step], behind), (correct[step], ahead)):
            integrals = _lagrange(ends[nodes], t[step]) @ measure[step]
            row[: len(nodes)] = integrals / at_ends[nodes]
    return predict, correct


def _lagrange(nodes: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Each node's polynomial, one there and zero at the others, at `t`: `[nodes, len(t)]`."""
    rows = []
    for index, node in enumerate(nodes):
        others = np.delete(nodes, index)
        rows.append(np.prod((t[:, None] - others) / (node - others), axis=1))
    return np.asarray(rows)


def _values(density: base.Density, t: np.ndarray) -> np.ndarray:
    """The density as NumPy's, whatever is being traced around it; float64."""
    if density is None:
        return np.ones_like(t)
    blocks = np.pad(t.ravel(), (0, -t.size % _BLOCK), mode="edge").reshape(-1, _BLOCK)
    with jax.ensure_compile_time_eval():
        values = [density(jnp.asarray(each, numerics.float_dtype())) for each in blocks]
    return np.concatenate(values).astype(np.float64)[: t.size].reshape(t.shape)
