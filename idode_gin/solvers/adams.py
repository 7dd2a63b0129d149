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
    history = tables.predict[0].shape[1]
    structure = jax.tree.structure(state)

    def change(weights: tuple[Array, ...], step: Array, slopes: Any) -> Any:
        rows = jax.tree.unflatten(structure, [each[step] for each in weights])
        return jax.tree.map(base.combined, rows, slopes)

    def solve(problem: tuple[base.State, tuple[Any, ...]]) -> base.Solution:
        state, args = problem
        blank = base.full_like_batch(state, 0.0)

        def slope_at(number: Array | int, state: base.State) -> base.State:
            return field(blank + tables.ends[number].astype(blank.dtype), state, *args)

        def advance(number: Array, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            state, lost, slopes = carry
            predicted, _ = base.added(state, lost, change(tables.predict, number, slopes))
            new = slope_at(number + 1, predicted)
            longer = jax.tree.map(lambda new, past: jnp.concatenate([new[None], past]), new, slopes)
            state, lost = base.added(state, lost, change(tables.correct, number, longer))
            return state, lost, jax.tree.map(lambda each: each[:history], longer)

        first = slope_at(0, state)
        slopes = jax.tree.map(
            lambda leaf: jnp.zeros((history, *leaf.shape), leaf.dtype).at[0].set(leaf), first
        )
        lost = jax.tree.map(jnp.zeros_like, state)
        state, _, _ = jax.lax.fori_loop(0, steps, advance, (state, lost, slopes))
        return base.Solution(
            state=state,
            num_evaluations=jnp.full(blank.shape, 1, jnp.int32) + steps,
            success=base.all_finite(state),
        )

    return base.in_chunks(solve, (state, args), lanes)


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
