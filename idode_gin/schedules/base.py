"""The interface of a noise schedule, a path from data to noise."""

import abc

from idode_gin import types


class AbstractSchedule(abc.ABC):
    """Signal and noise amplitudes as functions of gamma = log(sigma^2 / alpha^2).

    Contract, elementwise on gamma of any shape:
        z_gamma = alpha(gamma) f + sigma(gamma) eps
        gamma = 2 (log sigma - log alpha)
        dlog_sigma - dlog_alpha = 1/2

    The two derivatives are separate methods because each has a closed form with full relative
    accuracy, which their difference of 1/2 would lose by cancellation.
    """

    @abc.abstractmethod
    def alpha(self, gamma: types.Gamma) -> types.Gamma:
        """Return the signal amplitude."""

    @abc.abstractmethod
    def sigma(self, gamma: types.Gamma) -> types.Gamma:
        """Return the noise amplitude (standard deviation)."""

    @abc.abstractmethod
    def dlog_alpha(self, gamma: types.Gamma) -> types.Gamma:
        """Return d log alpha / d gamma, per nat."""

    @abc.abstractmethod
    def dlog_sigma(self, gamma: types.Gamma) -> types.Gamma:
        """Return d log sigma / d gamma, per nat."""

    @abc.abstractmethod
    def arc_length(self, gamma: types.Gamma) -> types.Gamma:
        """Return the length of the path in the (alpha, sigma) plane from sigma = 0 to gamma.

        d arc_length / d gamma = sqrt((alpha dlog_alpha)^2 + (sigma dlog_sigma)^2)
        """

    @abc.abstractmethod
    def gamma_at(self, arc_length: types.Gamma) -> types.Gamma:
        """Return gamma, the inverse of `arc_length`."""
