"""The interface of a dequantizer: from integers to the start of the ODE, with its density."""

import abc
import dataclasses
from typing import final

import jax.numpy as jnp
from jaxtyping import Array, Float

from idode_gin import numerics, types
from idode_gin.encoding import Encoding
from idode_gin.schedules.base import AbstractSchedule

Scalar = Float[Array, ""]


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class CleanEnd:
    """The clean end of the path, as needed by a dequantizer.

    Args:
        schedule: the path.
        encoding: pixel levels and their bins.
        gamma_min: gamma at the clean end, nats.
    """

    schedule: AbstractSchedule
    encoding: Encoding
    gamma_min: types.GammaEnd

    @property
    def gamma_number(self) -> float:
        """gamma_min as a number, which a solver needs."""
        return numerics.number(self.gamma_min, "gamma_min")

    @property
    def gamma(self) -> Scalar:
        """gamma_min as an array."""
        return jnp.asarray(self.gamma_min, numerics.float_dtype())

    @property
    def alpha(self) -> Scalar:
        """alpha_0, the signal amplitude at the clean end."""
        return self.schedule.alpha(self.gamma)

    @property
    def sigma(self) -> Scalar:
        """sigma_0, the noise amplitude at the clean end."""
        return self.schedule.sigma(self.gamma)

    @property
    def tau(self) -> Scalar:
        """Half a bin in units of the noise, alpha_0 / (sigma_0 V)."""
        return jnp.exp(-self.gamma / 2) / self.encoding.levels


class AbstractDequantizer(abc.ABC):
    """A density q(z | x) at the start of the ODE, so that

        log P(x) >= E_q[log p(z) + log P(x | z) - log q(z | x)].

    If q is supported inside the bin of x, `log P(x | z)` is zero, and the bound converges to the
    exact probability of the bin with many importance samples.
    """

    @abc.abstractmethod
    def gamma_start(self, end: CleanEnd) -> float:
        """Return gamma at the start of the ODE, nats."""

    @abc.abstractmethod
    def draw(self, keys: types.PRNGKeys, shape: tuple[int, ...], end: CleanEnd) -> types.Images:
        """Draw the noise of z, one image of `shape` (H, W, C) per key."""

    @abc.abstractmethod
    def start(self, x: types.Pixels, noise: types.Images, end: CleanEnd) -> types.Images:
        """Return z, the start of the ODE."""

    @abc.abstractmethod
    def neg_log_q(self, noise: types.Images, end: CleanEnd) -> types.PerExample:
        """Return -log q(z | x) of these draws, nats per image."""

    @abc.abstractmethod
    def entropy(self, dims: int, end: CleanEnd) -> Scalar:
        """Return the mean of -log q over q in closed form, nats per image of `dims` values."""

    @abc.abstractmethod
    def log_reconstruction(
        self, x: types.Pixels, z: types.Images, end: CleanEnd
    ) -> types.PerExample:
        """Return log P(x | z), nats per image; zero if z determines x."""
