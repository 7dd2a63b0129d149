"""Butcher tableaus of explicit Runge-Kutta methods."""

import dataclasses
from typing import final

_DORMAND_PRINCE = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
_EMBEDDED = (
    5179 / 57600,
    0.0,
    7571 / 16695,
    393 / 640,
    -92097 / 339200,
    187 / 2100,
    1 / 40,
)
DORMAND_PRINCE_ERROR = tuple(x - y for x, y in zip(_DORMAND_PRINCE, _EMBEDDED, strict=True))
"""Weights of the slopes in the error estimate of a step: order 5 minus order 4."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tableau:
    """An explicit Runge-Kutta method: k_i = f(t + c_i h, y + h sum_j a_ij k_j), y + h sum b_i k_i.

    Args:
        c: nodes, one per stage, the first zero.
        a: rows of the strictly lower triangle, the first empty.
        b: weights of the solution.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    def without_idle_stages(self) -> "Tableau":
        """Drop final stages that only the error estimate uses."""
        used = max(index for index, weight in enumerate(self.b) if weight) + 1
        return Tableau(c=self.c[:used], a=self.a[:used], b=self.b[:used])


def euler() -> Tableau:
    """Return Euler's method: order 1, one evaluation per step."""
    return Tableau(c=(0.0,), a=((),), b=(1.0,))


def midpoint() -> Tableau:
    """Return the midpoint method: order 2, two evaluations per step."""
    return Tableau(c=(0.0, 0.5), a=((), (0.5,)), b=(0.0, 1.0))


def heun() -> Tableau:
    """Return Heun's method (trapezoidal rule, Euler predictor): order 2, two evaluations."""
    return Tableau(c=(0.0, 1.0), a=((), (1.0,)), b=(0.5, 0.5))


def runge_kutta_4() -> Tableau:
    """Return the classical method of order 4, four evaluations per step."""
    return Tableau(
        c=(0.0, 0.5, 0.5, 1.0),
        a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    )


def dormand_prince() -> Tableau:
    """Return order 5 with embedded order 4; the last stage is the first of the next step.

    Refs: Dormand and Prince 1980; the coefficients of RK45 in SciPy and ode45 in MATLAB.
    """
    return Tableau(
        c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            _DORMAND_PRINCE[:-1],
        ),
        b=_DORMAND_PRINCE,
    )
