"""The interfaces of training losses and bounds, and the two terms that all bounds share."""

import abc
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from idode_gin import numerics, ode, types
from idode_gin.dequantizers.base import CleanEnd
from idode_gin.schedules.time.base import AbstractTime


class LossDraws(NamedTuple):
    """The random arrays of a loss, which can be drawn or given."""

    noise: types.Images
    """eps, standard normal `[B, H, W, C]`."""
    probes: Float[Array, "probes batch height width channels"]
    """Hutchinson probes; `[0, B, H, W, C]` if the loss needs none."""


class LossTerms(NamedTuple):
    """The objective of each example, the sum of these terms, nats."""

    diffusion: types.PerExample
    """Estimate of the diffusion term of the bound."""
    second_order: types.PerExample
    """Second-order term; zero for first-order losses."""


class AbstractLoss(abc.ABC):
    """A training objective per example.

    Its value also trains the parameters of gamma(t) if it is an unbiased estimate of the bound,
    differentiable in gamma and density. A subclass that is none sets `trains_time` to False, and
    leaves these parameters as they are. One that takes no forward-mode derivative of the field,
    such as a divergence, sets `reverse_mode_only` to True, so that a network may use kernels
    without one.
    """

    trains_time: ClassVar[bool] = True
    reverse_mode_only: ClassVar[bool] = False

    @abc.abstractmethod
    def draw(self, keys: types.PRNGKeys, shape: tuple[int, ...]) -> LossDraws:
        """Draw the noise for images of `shape` (H, W, C), one example per key."""

    @abc.abstractmethod
    def __call__(
        self,
        field: ode.Field,
        f: types.Images,
        gamma: types.PerExample,
        density: types.PerExample,
        draws: LossDraws,
    ) -> LossTerms:
        """Return the objective at each gamma, whose sampling density per nat is `density`."""


class BoundTerms(NamedTuple):
    """The three terms of the variational bound on -log P(x), nats per image."""

    reconstruction: types.PerExample
    prior: types.PerExample
    diffusion: types.PerExample

    @property
    def total(self) -> types.PerExample:
        """Sum of the terms, an upper bound on -log P(x)."""
        return self.reconstruction + self.prior + self.diffusion


class AbstractBound(abc.ABC):
    """An unbiased estimator of a variational bound per image."""

    @abc.abstractmethod
    def __call__(
        self,
        field: ode.Field,
        end: CleanEnd,
        time: AbstractTime,
        x: types.Pixels,
        keys: types.PRNGKeys,
    ) -> BoundTerms:
        """Return the terms of the bound with noise from each image's key, nats."""

    @abc.abstractmethod
    def num_evaluations(self) -> int:
        """Return the number of network evaluations per image."""


def prior_term(field: ode.Field, time: AbstractTime, f: types.Images) -> types.PerExample:
    """Return KL(q(z_1 | x) || N(0, I)), nats per image.

    1/2 sum(alpha_1^2 f^2 + sigma_1^2 - log sigma_1^2 - 1)
    """
    gamma = jnp.asarray(time.gamma_max, f.dtype)
    alpha, sigma = field.schedule.alpha(gamma), field.schedule.sigma(gamma)
    constant = sigma**2 - 2 * jnp.log(sigma) - 1
    return 0.5 * numerics.sum_pixels((alpha * f) ** 2 + constant)


def reconstruction_term(end: CleanEnd, x: types.Pixels, noise: types.Images) -> types.PerExample:
    """Return -log P(x | z_0) at z_0 / alpha_0 = f + e^{gamma_min / 2} eps, nats."""
    y = end.encoding.encode(x) + jnp.exp(end.gamma / 2) * noise
    return -end.encoding.log_prob(x, y, end.gamma)


def stratified_bound(
    field: ode.Field,
    end: CleanEnd,
    time: AbstractTime,
    x: types.Pixels,
    keys: types.PRNGKeys,
    num_times: int,
    diffusion: Callable[[types.Images, types.PerExample, types.Images], types.PerExample],
) -> BoundTerms:
    """Return a bound whose diffusion term is the mean of `diffusion(f, u, noise)` over u in [0, 1).

    The `num_times` quantiles u of an image are equally spaced with one random offset, so that its
    result is a pure function of its own key.
    """
    keys_offset, keys_reconstruction, keys_noise = numerics.split_each(keys, 3)
    f, shape = end.encoding.encode(x), x.shape[1:]
    offset = jax.vmap(lambda key: jax.random.uniform(key, dtype=f.dtype))(keys_offset)

    def one(number: Array) -> types.PerExample:
        keys_here = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_noise)
        noise = numerics.normal_each(keys_here, shape)
        u = jnp.minimum((offset + number) / num_times, 1 - jnp.finfo(f.dtype).epsneg)
        return diffusion(f, u, noise)

    noise = numerics.normal_each(keys_reconstruction, shape)
    return BoundTerms(
        reconstruction=reconstruction_term(end, x, noise),
        prior=prior_term(field, time, f),
        diffusion=jnp.mean(jax.lax.map(one, jnp.arange(num_times)), axis=0),
    )
