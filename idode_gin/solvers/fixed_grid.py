"""Runge-Kutta on a fixed grid."""

import dataclasses
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from idode_gin import checks
from idode_gin.solvers import base, spacings, tableaus


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedGrid(base.AbstractSolver):
    """An explicit Runge-Kutta method on a fixed grid: the cost is known in advance.

    Args:
        steps: number of steps from t0 to t1.
        tableau: the method.
        spacing: spacing of the steps.
    """

    steps: int = 64
    tableau: tableaus.Tableau = dataclasses.field(default_factory=tableaus.runge_kutta_4)
    spacing: spacings.AbstractSpacing = dataclasses.field(default_factory=spacings.Equal)

    def __post_init__(self) -> None:
        checks.check_count("steps", self.steps)

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
        tableau = self.tableau.without_idle_stages()
        ends = t0 + (t1 - t0) * self.spacing.fractions(self.steps)
        dtype = jax.tree.leaves(state)[0].dtype
        starts, sizes = jnp.asarray(ends[:-1], dtype), jnp.asarray(np.diff(ends), dtype)

        def solve(problem: tuple[base.State, tuple[Any, ...]]) -> base.Solution:
            state, args = problem
            blank = base.full_like_batch(state, 0.0)

            def bound(t: Array, state: base.State) -> base.State:
                return field(t, state, *args)

            def advance(index: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
                state, lost = carry
                t, step = blank + starts[index], blank + sizes[index]
                stages = base.runge_kutta_stages(tableau, bound, t, state, step)
                zero = jax.tree.map(jnp.zeros_like, state)
                change = base.weighted_sum(zero, step, jnp.asarray(tableau.b), stages)
                return base.added(state, lost, change)

            lost = jax.tree.map(jnp.zeros_like, state)
            # In reverse mode a step keeps its carry alone, and computes the field again.
            step = jax.checkpoint(advance, prevent_cse=False)
            state, _ = jax.lax.fori_loop(0, self.steps, step, (state, lost))
            evaluations = self.steps * len(tableau.c)
            return base.Solution(
                state=state,
                num_evaluations=jnp.full(blank.shape, evaluations, jnp.int32),
                success=base.all_finite(state),
            )

        return base.in_chunks(solve, (state, args), lanes)
