"""An exponential multistep method in the log signal-to-noise ratio, after DPM-Solver++."""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from idode_gin import checks, ode, types
from idode_gin.dequantizers.base import CleanEnd
from idode_gin.samplers import base
from idode_gin.samplers.grids import AbstractGrid, LogSNR
from idode_gin.solvers import adams
from idode_gin.solvers.base import combined

MAX_ORDER = 3
_QUADRATURE = 40


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPlusPlus(base.AbstractDeterministicSampler):
    """An exponential multistep method: predicts f_hat and solves the linear part exactly.

    With y = z / alpha, lambda = -gamma / 2 and a step of h in lambda,

        y(lambda + h) = e^{-h} y(lambda) + integral_0^h e^{tau - h} f_hat(lambda + tau) dtau

    where f_hat is the polynomial through its last `order` values, integrated exactly. Order 1 is
    DDIM. The published second order weights the slope by (1 - e^{-h}) h / 2 instead of the integral
    h - 1 + e^{-h}, which agrees to that order. One network evaluation per step.

    The first steps have fewer earlier values. For order 3, the first step, of order 1, is corrected
    when f_hat is known at its end; otherwise the result would be of order 2.

    Args:
        steps: number of steps and network evaluations.
        order: 1, 2 or 3.
        grid: gammas of the steps; by default equal steps of lambda.

    Raises:
        ValueError: for another order, or less than one step.

    Refs: DPM-Solver++, the exact solution in data prediction, and its multistep; DDIM.
    """

    steps: int = 32
    order: int = 2
    grid: AbstractGrid = dataclasses.field(default_factory=LogSNR)

    def __post_init__(self) -> None:
        checks.check_integer("steps", self.steps, at_least=1)
        checks.check_integer("order", self.order, at_least=1)
        if self.order not in range(1, MAX_ORDER + 1):
            raise ValueError(
                f"`order` must be 1, 2 or {MAX_ORDER}, got order={self.order}. Higher orders are "
                "not stable at large steps: use more steps, or an adaptive solver (ODESampler)."
            )

    def from_noise(
        self, field: ode.Field, end: CleanEnd, gamma_max: float, noise: types.Images
    ) -> base.Samples:
        """Map standard normal `noise` to images."""
        gammas = self.grid.gammas(gamma_max, end.gamma_number, self.steps)
        kappas = base.kappas(gammas)
        gamma, kappa = base.along(gammas, noise), base.along(kappas, noise)
        decay, weight = (
            base.along(each, noise)
            for each in (kappas[1:] / kappas[:-1], weights(gammas, self.order))
        )

        def advance(step: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            y, before = carry
            f_hat = y - kappa[step] * base.noise_hat(field, y, gamma[step])
            known = jnp.concatenate([f_hat[None], before[:-1]])
            return decay[step] * y + combined(weight[step], known), known

        start = kappa[0] * noise, jnp.zeros((self.order, *noise.shape), noise.dtype)
        y, _ = jax.lax.fori_loop(0, self.steps, advance, start)
        return base.arrived(end, y, self.steps)


def weights(gammas: np.ndarray, order: int) -> np.ndarray:
    """Return weights of f_hat at the last `order` nodes, newest first; float64 `[steps, order]`.

    Args:
        gammas: decreasing, `[steps + 1]`.
        order: order of the method.
    """
    at = -gammas / 2
    steps = len(gammas) - 1
    found = np.zeros((steps, order))
    for step in range(steps):
        count = min(step + 1, order)
        nodes = at[step + 1 - count : step + 1][::-1]
        found[step, :count] = _integrals(nodes, at[step], at[step + 1])
    if order == MAX_ORDER and steps > 1:
        # The first step was y_1 = e^{-h} y_0 + w f_0. With the slope between f_0 and f_1 it would
        # be e^{-h} y_0 + b f_1 + a f_0. The second step adds the difference.
        b, a = _integrals(at[1::-1], at[0], at[1])
        found[1, :2] += np.exp(at[1] - at[2]) * np.asarray([b, a - found[0, 0]])
    return found


def _integrals(nodes: np.ndarray, start: float, stop: float) -> np.ndarray:
    """Integrate e^{lambda - stop} over [start, stop] times each Lagrange polynomial of `nodes`.

    Quadrature, because the closed forms lose digits by cancellation in short steps.
    """
    points, shares = np.polynomial.legendre.leggauss(_QUADRATURE)
    at = start + (stop - start) * (points + 1) / 2
    mass = (stop - start) / 2 * shares * np.exp(at - stop)
    return np.asarray([np.sum(mass * each) for each in adams.lagrange(nodes, at)])
