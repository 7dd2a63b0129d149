"""Grids of gamma for samplers with fixed steps."""

import abc
import dataclasses
from typing import final

import numpy as np

from idode_gin import checks
from idode_gin.solvers.spacings import AbstractSpacing, Equal


class AbstractGrid(abc.ABC):
    """The gammas of a given number of steps."""

    @abc.abstractmethod
    def gammas(self, gamma_max: float, gamma_min: float, steps: int) -> np.ndarray:
        """Return gammas from gamma_max down to gamma_min, exact; float64 `[steps + 1]`, nats."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSNR(AbstractGrid):
    """gamma_i = gamma_max + u_i (gamma_min - gamma_max): steps of the log signal-to-noise ratio.

    Args:
        spacing: spacing of u from 0 to 1; by default equal steps of gamma, which are equal steps of
            time if gamma(t) is linear.
    """

    spacing: AbstractSpacing = dataclasses.field(default_factory=Equal)

    def gammas(self, gamma_max: float, gamma_min: float, steps: int) -> np.ndarray:
        """Return the gammas of the class docstring."""
        found = gamma_max + self.spacing.fractions(steps) * (gamma_min - gamma_max)
        return _with_ends(found, gamma_max, gamma_min)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class PowerOfKappa(AbstractGrid):
    """Equal steps of kappa^{1/rho}, kappa = e^{gamma/2} = sigma / alpha.

        kappa_i = (kappa_max^{1/rho} + i/n (kappa_min^{1/rho} - kappa_max^{1/rho}))^rho

    Args:
        rho: 1 for equal steps of kappa; large values approach equal steps of gamma; 7 is usual and
            concentrates steps at low noise.

    Refs: EDM, time steps.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        checks.check_positive("rho", self.rho)

    def gammas(self, gamma_max: float, gamma_min: float, steps: int) -> np.ndarray:
        """Return the gammas of the class docstring."""
        exponent = 2 * self.rho  # relative to kappa_max, of which the power may be too large
        powers = np.linspace(1, np.exp((gamma_min - gamma_max) / exponent), steps + 1)
        with np.errstate(divide="ignore"):  # the last may be too small, and is set below
            return _with_ends(gamma_max + exponent * np.log(powers), gamma_max, gamma_min)


def _with_ends(gammas: np.ndarray, first: float, last: float) -> np.ndarray:
    gammas[0], gammas[-1] = first, last
    return gammas
