"""Runge-Kutta on a fixed grid."""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array

from idode_gin import checks
from idode_gin.solvers import base, tableaus


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedGrid(base.AbstractSolver):
    """Equal steps of an explicit Runge-Kutta method: the cost is known beforehand.

    Args:
        steps: number of equal steps from t0 to t1.
        tableau: the method.
    """

    steps: int = 64
    tableau: tableaus.Tableau = dataclasses.field(default_factory=tableaus.runge_kutta_4)

    def __post_init__(self) -> None:
        """Checks the number of steps."""
        checks.check_positive("steps", self.steps)

    def solve(
        self, field: base.VectorField, state: base.State, t0: float, t1: float
    ) -> base.Solution:
        """The solution at t1 after `steps` equal steps."""
        size = (t1 - t0) / self.steps
        step = base.full_like_batch(state, size)

        def advance(index: Array, state: base.State) -> base.State:
            t = base.full_like_batch(state, t0) + index * step
            first = field(t, state)
            stages = base.runge_kutta_stages(self.tableau, field, t, state, step, first)
            return base.weighted_sum(state, step, jnp.asarray(self.tableau.b), stages)

        state = jax.lax.fori_loop(0, self.steps, advance, state)
        evaluations = self.steps * len(self.tableau.c)
        return base.Solution(
            state=state,
            num_evaluations=jnp.full(step.shape, evaluations, jnp.int32),
            success=base.all_finite(state),
        )
