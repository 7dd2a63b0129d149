"""The interface of gamma(t), the speed of time along a schedule."""

import abc

import jax

from idode_gin import types


class AbstractTime(abc.ABC):
    """A strictly increasing map from t in [0, 1] to gamma in [gamma_min, gamma_max].

    The continuous-time bound depends on it only through its two ends; the interior changes the
    variance of estimates, not their mean.
    """

    @property
    @abc.abstractmethod
    def gamma_min(self) -> float:
        """gamma at t = 0, the clean end; nats."""

    @property
    @abc.abstractmethod
    def gamma_max(self) -> float:
        """gamma at t = 1, the noise end; nats."""

    @abc.abstractmethod
    def gamma(self, t: types.Gamma) -> types.Gamma:
        """Return gamma(t), elementwise."""

    def dgamma(self, t: types.PerExample) -> types.PerExample:
        """Return d gamma / dt at `[B]` times."""
        return jax.vmap(jax.grad(self.gamma))(t)

    def rescale(self, gamma: types.Gamma) -> types.Gamma:
        """Return gamma as a fraction of its range, in [0, 1]: the time input of the network."""
        return (gamma - self.gamma_min) / (self.gamma_max - self.gamma_min)
