"""Models whose optimal network, density or bound is known exactly, and a small random one."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from idode_gin import numerics, ode
from idode_gin.dequantizers.base import AbstractDequantizer, CleanEnd
from idode_gin.encoding import Encoding
from idode_gin.losses.first_order import FirstOrder
from idode_gin.models import DiffusionODE
from idode_gin.networks.base import AbstractNetwork
from idode_gin.parameterizations.base import AbstractParameterization
from idode_gin.parameterizations.noise import Noise
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.time.linear import Linear
from idode_gin.time_samplers.uniform import Uniform


def field_of(
    schedule: AbstractSchedule,
    parameterization: AbstractParameterization,
    noise_hat: Callable[[jax.Array, jax.Array], jax.Array],
) -> ode.Field:
    """The field whose noise prediction is `noise_hat(z, gamma)`, whatever the parameterization."""

    def network(z: jax.Array, gamma: jax.Array) -> jax.Array:
        return parameterization.target(schedule, gamma, z, noise_hat(z, gamma))

    return ode.Field(schedule=schedule, parameterization=parameterization, network=network)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Clean images f ~ N(mean, std^2), pixels independent."""

    mean: np.ndarray
    std: np.ndarray
    schedule: AbstractSchedule

    def variance(self, gamma):
        """v, the variance of the latent."""
        return (
            self.schedule.alpha(gamma)[..., None, None, None] * self.std
        ) ** 2 + self.schedule.sigma(gamma)[..., None, None, None] ** 2

    def centre(self, gamma):
        """Mean of the latent."""
        return self.schedule.alpha(gamma)[..., None, None, None] * self.mean

    def noise_hat(self, z, gamma):
        """The optimal prediction, E[eps | z]."""
        sigma = numerics.expand(self.schedule.sigma(gamma), z)
        return sigma * (z - self.centre(gamma)) / self.variance(gamma)

    def field(self, parameterization: AbstractParameterization | None = None) -> ode.Field:
        """The optimal network with its meaning."""
        return field_of(self.schedule, parameterization or Noise(), self.noise_hat)

    def sample(self, seed: int, count: int) -> jax.Array:
        """Clean images."""
        noise = np.random.default_rng(seed).normal(size=(count, *self.mean.shape))
        return jnp.asarray(self.mean + self.std * noise)

    def pushed(self, gamma_start: float, gamma_end: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std at gamma_start of what the ODE makes of N(0, sigma^2) at gamma_end."""
        start, end = jnp.asarray(gamma_start), jnp.asarray(gamma_end)
        ratio = np.sqrt(np.asarray(self.variance(start)) / np.asarray(self.variance(end)))
        mean = np.asarray(self.centre(start)) - ratio * np.asarray(self.centre(end))
        return mean, ratio * float(self.schedule.sigma(end))

    def transported(self, z, gamma_from: float, gamma_to: float) -> np.ndarray:
        """Return the end of the ODE from z, which conserves (z - mean) / std."""
        here, there = jnp.asarray(gamma_from), jnp.asarray(gamma_to)
        ratio = np.sqrt(np.asarray(self.variance(there)) / np.asarray(self.variance(here)))
        return np.asarray(self.centre(there)) + ratio * (
            np.asarray(z) - np.asarray(self.centre(here))
        )


def gaussian(schedule: AbstractSchedule, shape=(2, 2, 1), std_scale: float = 1.0) -> Gaussian:
    """Another mean and std in every pixel."""
    rng = np.random.default_rng(7)
    mean = rng.uniform(-0.5, 0.5, shape)
    std = std_scale * rng.uniform(0.2, 0.8, shape)
    return Gaussian(mean, std, schedule)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Clean images from a mixture of Gaussians; pixels are dependent through the component."""

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray
    schedule: AbstractSchedule

    def _pieces(self, z, gamma):
        """log of the components' joint densities `[B, n]`, means and variances of f given z."""
        alpha = self.schedule.alpha(gamma).reshape(-1, 1, 1, 1, 1)
        sigma = self.schedule.sigma(gamma).reshape(-1, 1, 1, 1, 1)
        z = z[:, None]
        variance = (alpha * self.stds) ** 2 + sigma**2
        difference = z - alpha * self.means
        log_p = -0.5 * (difference**2 / variance + jnp.log(2 * jnp.pi * variance))
        mean = self.means + alpha * self.stds**2 * difference / variance
        return (
            jnp.sum(log_p, axis=(2, 3, 4)) + jnp.log(self.weights),
            mean,
            (self.stds * sigma) ** 2 / variance,
        )

    def log_p(self, z, gamma):
        """Exact log-density of the latent, `[B]`."""
        return jax.nn.logsumexp(self._pieces(z, gamma)[0], axis=1)

    def posterior(self, z, gamma):
        """E[f | z], and the trace of Cov[f | z], `[B]`."""
        log_joint, means, variances = self._pieces(z, gamma)
        share = jax.nn.softmax(log_joint, axis=1)[..., None, None, None]
        mean = jnp.sum(share * means, axis=1)
        spread = share * (variances + (means - mean[:, None]) ** 2)
        return mean, jnp.sum(spread, axis=(1, 2, 3, 4))

    def noise_hat(self, z, gamma):
        """The optimal prediction, E[eps | z] = sum_k share_k sigma (z - alpha m_k) / v_k."""
        alpha, sigma = (
            each(gamma).reshape(-1, 1, 1, 1, 1)
            for each in (self.schedule.alpha, self.schedule.sigma)
        )
        variance = (alpha * self.stds) ** 2 + sigma**2
        share = jax.nn.softmax(self._pieces(z, gamma)[0], axis=1)[..., None, None, None]
        return jnp.sum(share * sigma * (z[:, None] - alpha * self.means) / variance, axis=1)

    def field(self, parameterization: AbstractParameterization | None = None) -> ode.Field:
        """The optimal network with its meaning."""
        return field_of(self.schedule, parameterization or Noise(), self.noise_hat)

    def sample(self, seed: int, count: int) -> jax.Array:
        """Clean images."""
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(self.weights), count, p=self.weights)
        noise = rng.normal(size=(count, *self.means.shape[1:]))
        return jnp.asarray(self.means[chosen] + self.stds[chosen] * noise)


def mixture(schedule: AbstractSchedule, shape=(2, 2, 1)) -> Mixture:
    """Two components that overlap."""
    rng = np.random.default_rng(3)
    means = rng.uniform(-0.7, 0.7, (2, *shape))
    stds = rng.uniform(0.2, 0.5, (2, *shape))
    return Mixture(np.asarray([0.3, 0.7]), means, stds, schedule)


@dataclasses.dataclass(frozen=True)
class PixelMixture:
    """Clean images whose pixels are independent, each from a mixture of Gaussians of its own.

    So every Jacobian is diagonal, and one Rademacher probe gives its trace exactly: v_i^2 = 1.
    Arrays are `[n, H, W, C]`.
    """

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray
    schedule: AbstractSchedule

    def noise_hat(self, z, gamma):
        """The optimal prediction, E[eps | z] = sum_k share_k sigma (z - alpha m_k) / v_k."""
        alpha = self.schedule.alpha(gamma).reshape(-1, 1, 1, 1, 1)
        sigma = self.schedule.sigma(gamma).reshape(-1, 1, 1, 1, 1)
        variance = (alpha * self.stds) ** 2 + sigma**2
        difference = z[:, None] - alpha * self.means
        log_joint = jnp.log(self.weights) - 0.5 * (difference**2 / variance + jnp.log(variance))
        share = jax.nn.softmax(log_joint, axis=1)
        return jnp.sum(share * sigma * difference / variance, axis=1)

    def field(self, parameterization: AbstractParameterization | None = None) -> ode.Field:
        """The optimal network with its meaning."""
        return field_of(self.schedule, parameterization or Noise(), self.noise_hat)

    def _at(self, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations of the components of the latent."""
        alpha, sigma = (
            float(each(jnp.asarray(gamma))) for each in (self.schedule.alpha, self.schedule.sigma)
        )
        return alpha * self.means, np.sqrt((alpha * self.stds) ** 2 + sigma**2)

    def log_density(self, z: np.ndarray, gamma: float) -> np.ndarray:
        """Return the log-density of each pixel of the latent, float64."""
        means, stds = self._at(gamma)
        each = scipy.stats.norm.logpdf(z[:, None], means, stds) + np.log(self.weights)
        return scipy.special.logsumexp(each, axis=1)

    def transported(self, z: np.ndarray, gamma_from: float, gamma_to: float) -> np.ndarray:
        """Return the end of the ODE from z by bisection: in one dimension it conserves the CDF."""
        below = self._below(z, gamma_from)
        low, high = np.full(z.shape, -50.0), np.full(z.shape, 50.0)
        for _ in range(60):
            middle = (low + high) / 2
            is_low = self._below(middle, gamma_to) < below
            low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
        return (low + high) / 2

    def _below(self, z: np.ndarray, gamma: float) -> np.ndarray:
        means, stds = self._at(gamma)
        return np.sum(self.weights * scipy.stats.norm.cdf(z[:, None], means, stds), axis=1)

    def sample(self, seed: int, count: int) -> np.ndarray:
        """Clean images."""
        rng = np.random.default_rng(seed)
        shape = (count, *self.means.shape[1:])
        is_first = rng.uniform(size=shape) < self.weights[0]
        noise = rng.normal(size=shape)
        return np.where(
            is_first, *(m + s * noise for m, s in zip(self.means, self.stds, strict=True))
        )


def pixel_mixture(schedule: AbstractSchedule, shape=(2, 2, 1)) -> PixelMixture:
    """Two components in every pixel, apart in some and hardly in others."""
    rng = np.random.default_rng(11)
    first = rng.uniform(0.1, 0.9, shape)
    return PixelMixture(
        np.stack([first, 1 - first]),
        rng.uniform(-0.7, 0.7, (2, *shape)),
        rng.uniform(0.05, 0.3, (2, *shape)),
        schedule,
    )


@dataclasses.dataclass(frozen=True)
class Optimal(AbstractNetwork):
    """The network of a field that is known; it has no parameters."""

    known: ode.Field
    time: Linear

    def init(self, key, image_shape):
        """None."""
        return {}

    def __call__(self, params, z, time, conditioning, key=None):
        """F."""
        low, high = self.time.gamma_min, self.time.gamma_max
        return self.known.output(z, low + (high - low) * time)


def optimal_model(field: ode.Field, time: Linear, levels: int) -> DiffusionODE:
    """The model that has learned `field`."""
    return DiffusionODE(
        network=Optimal(field, time),
        schedule=field.schedule,
        time=time,
        parameterization=field.parameterization,
        time_sampler=Uniform(),
        loss=FirstOrder(),
        encoding=Encoding(levels=levels),
    )


@dataclasses.dataclass(frozen=True)
class UniformLevels:
    """Every level of every pixel equally likely: the decoder is then the exact posterior of x."""

    encoding: Encoding
    schedule: AbstractSchedule

    def noise_hat(self, z, gamma):
        """The optimal prediction, E[eps | z]."""
        y = z / numerics.expand(self.schedule.alpha(gamma), z)
        shares = jax.nn.softmax(self._logits(y, gamma), axis=-1)
        mean = jnp.sum(shares * self._centres(), axis=-1)
        return (y - mean) / jnp.exp(numerics.expand(gamma, z) / 2)

    def _centres(self):
        levels = self.encoding.levels
        return jnp.asarray([(2 * k + 1 - levels) / levels for k in range(levels)])

    def _logits(self, y, gamma):
        ratio = jnp.exp(-numerics.expand(gamma, y) / 2)[..., None]
        return -0.5 * ((y[..., None] - self._centres()) * ratio) ** 2

    def mean_square_error(self, gamma: float) -> float:
        """E |eps - E[eps | z]|^2 of one pixel, by quadrature over the noise at every level."""
        nodes, weights = normal_quadrature()
        levels = self.encoding.levels
        centres = (2 * np.arange(levels) + 1 - levels) / levels
        y = centres[:, None] + math.exp(gamma / 2) * nodes
        logits = -0.5 * ((y[..., None] - centres) * math.exp(-gamma / 2)) ** 2
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        mean = np.sum(shares * centres, -1) / np.sum(shares, -1)
        noise_hat = (y - mean) * math.exp(-gamma / 2)
        return float(np.mean((nodes - noise_hat) ** 2 @ weights))


@dataclasses.dataclass(frozen=True)
class TinyNetwork(AbstractNetwork):
    """Two dense layers over all pixels, time and conditioning of an image."""

    hidden: int = 6
    scale: float = 1.0

    def init(self, key, image_shape):
        """Parameters."""
        dims = math.prod(image_shape)
        keys = jax.random.split(key, 3)
        return {
            "first": self.scale * jax.random.normal(keys[0], (dims + 2, self.hidden)),
            "bias": self.scale * jax.random.normal(keys[1], (self.hidden,)),
            "second": self.scale * jax.random.normal(keys[2], (self.hidden, dims)),
        }

    def __call__(self, params, z, time, conditioning, key=None):
        """F."""
        flat = z.reshape(z.shape[0], -1)
        inputs = jnp.concatenate([flat, time[:, None], conditioning[:, :1]], axis=1)
        hidden = jnp.tanh(inputs @ params["first"] + params["bias"])
        output = (hidden @ params["second"]).reshape(z.shape)
        if key is not None:
            noise = jax.vmap(lambda one: jax.random.normal(one, ()))(key)
            output = output * (1 + 0.1 * numerics.expand(noise, z))
        return output


def clean_end(schedule: AbstractSchedule, levels: int, tau: float) -> CleanEnd:
    """The clean end where half a bin is `tau` standard deviations of the noise."""
    gamma_min = -2 * math.log(tau * levels)
    return CleanEnd(schedule=schedule, encoding=Encoding(levels=levels), gamma_min=gamma_min)


def latent_scale(dequantizer: AbstractDequantizer, end: CleanEnd) -> float:
    """c in z = c f + noise: the factor between encoded pixels and the start of the ODE."""
    x = jnp.asarray([0, end.encoding.levels - 1]).reshape(2, 1, 1, 1)
    noise = jnp.broadcast_to(dequantizer.draw(keys_of(1, 1), (1, 1, 1), end), x.shape)
    z, f = dequantizer.start(x, noise, end), end.encoding.encode(x)
    return float(jnp.ravel((z[1] - z[0]) / (f[1] - f[0]))[0])


@functools.cache
def normal_quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a mean over a standard normal number."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    return nodes, weights / weights.sum()


def keys_of(seed: int, count: int) -> jax.Array:
    """One key per image."""
    return jax.random.split(jax.random.key(seed), count)


def assert_mean(values, expected: float, sigmas: float = 4.5, at_most: float = np.inf) -> None:
    """The mean of independent values is `expected` within its standard error.

    `at_most` bounds the standard error itself, so that the comparison is worth making.
    """
    values = np.asarray(values, np.float64)
    error = np.std(values, ddof=1) / math.sqrt(values.size)
    assert error <= at_most, f"standard error {error:.3g}, wanted {at_most:.3g}"
    distance = abs(np.mean(values) - expected)
    assert distance <= sigmas * error + 1e-12 * abs(expected), (
        f"mean {np.mean(values):.6g} +- {error:.2g}, expected {expected:.6g}"
    )
