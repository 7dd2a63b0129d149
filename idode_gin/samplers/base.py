"""The interface of a sampler: noise to images."""

import abc
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Integer

from idode_gin import numerics, ode, types
from idode_gin.dequantizers.base import CleanEnd
from idode_gin.solvers.divergence import AbstractDivergence


class Samples(NamedTuple):
    """Images, one per key."""

    pixels: types.Pixels
    """Decoded levels, 0 … V-1."""
    latent: types.Images
    """Latent z at the clean end."""
    num_evaluations: Integer[Array, " batch"]
    """Network evaluations."""
    success: Bool[Array, " batch"]
    """True if the sampler reached the end with finite values."""
    log_p: types.PerExample | None = None
    """log p(latent), nats, a density of z and not of pixels; None if not requested."""


class AbstractSampler(abc.ABC):
    """Draws sigma_1 N(0, I) at the noise end and maps it to the clean end.

    An image is a function of its own key, independent of the batch. All samplers start from the
    same noise for the same key, so that their images can be compared.
    """

    @abc.abstractmethod
    def __call__(
        self,
        field: ode.Field,
        end: CleanEnd,
        gamma_max: float,
        shape: tuple[int, ...],
        keys: types.PRNGKeys,
    ) -> Samples:
        """Sample one image of `shape` (H, W, C) per key."""

    def with_log_prob(self, divergence: AbstractDivergence) -> "AbstractSampler":
        """Return a sampler of the same images that also computes their log-density.

        Raises:
            ValueError: for every sampler but `ODESampler`: the images of other steps have no
                density that agrees with their likelihood under the ODE.
        """
        raise ValueError(
            f"`return_log_prob` needs a sampler that follows the ODE, got {type(self).__name__}: "
            "only there an image has one path, and the density that scoring it back finds. Use "
            "ODESampler, or set `return_log_prob` to False."
        )


class AbstractDeterministicSampler(AbstractSampler):
    """A sampler that maps noise to images deterministically."""

    def __call__(
        self,
        field: ode.Field,
        end: CleanEnd,
        gamma_max: float,
        shape: tuple[int, ...],
        keys: types.PRNGKeys,
    ) -> Samples:
        """Sample one image of `shape` (H, W, C) per key."""
        return self.from_noise(field, end, gamma_max, start_noise(keys, shape))

    @abc.abstractmethod
    def from_noise(
        self, field: ode.Field, end: CleanEnd, gamma_max: float, noise: types.Images
    ) -> Samples:
        """Map standard normal `noise` to images."""


def start_noise(keys: types.PRNGKeys, shape: tuple[int, ...]) -> types.Images:
    """Draw the standard normal images of `shape`, one per key, that every sampler starts from."""
    return numerics.normal_each(numerics.split_each(keys, 2)[0], shape)


def step_keys(keys: types.PRNGKeys, step: int | Array) -> types.PRNGKeys:
    """Return keys of one step, distinct by image and step, and distinct from `start_noise`."""
    return jax.vmap(lambda key: jax.random.fold_in(key, step))(numerics.split_each(keys, 2)[1])


def noise_hat(field: ode.Field, y: types.Images, gamma: Array) -> types.Images:
    """Return eps_hat at y = z / alpha and one gamma for all images."""
    each = jnp.broadcast_to(gamma, y.shape[:1]).astype(y.dtype)
    return field.noise_hat(numerics.expand(field.schedule.alpha(each), y) * y, each)


def arrived(end: CleanEnd, y: types.Images, num_evaluations: int) -> Samples:
    """Return samples from y = z / alpha at the clean end."""
    return Samples(
        pixels=end.encoding.decode(y),
        latent=end.alpha * y,
        num_evaluations=jnp.full(y.shape[:1], num_evaluations, jnp.int32),
        success=jnp.all(jnp.isfinite(y), axis=tuple(range(1, y.ndim))),
    )


def kappas(gammas: np.ndarray) -> np.ndarray:
    """Return sigma / alpha = e^{gamma / 2}, float64."""
    return np.exp(gammas / 2)


def along(values: np.ndarray, like: Array) -> Array:
    """Convert float64 numbers to an array of the dtype of `like`."""
    return jnp.asarray(values, like.dtype)
