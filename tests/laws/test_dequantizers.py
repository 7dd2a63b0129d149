"""Laws of every dequantizer, on every schedule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from idode_gin.dequantizers.base import AbstractDequantizer
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.dequantizers.uniform import Uniform
from idode_gin.dequantizers.variational import Variational
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.variance_preserving import VariancePreserving

from . import discovery, toys

EACH = discovery.each("dequantizer", AbstractDequantizer)
ON_EACH_SCHEDULE = discovery.each("schedule", AbstractSchedule)
LEVELS = pytest.mark.parametrize("levels", [2, 5])
PIXEL = (1, 1, 1)
TAU = 1.0  # far from 3, so that a cut normal's constants are far from one
pytestmark = pytest.mark.usefixtures("float64")


@functools.cache
def one_pixel(dequantizer, schedule, levels, count=50_000):
    """Draw noise of one pixel; return it with the latents of level 1."""
    end = toys.clean_end(schedule, levels, TAU)
    noise = jax.jit(lambda keys: dequantizer.draw(keys, PIXEL, end))(toys.keys_of(0, count))
    x = jnp.ones((count, *PIXEL), jnp.int32)
    return end, noise, dequantizer.start(x, noise, end)


def grid(dequantizer, end, noise):
    """A fine grid over the support of the noise, the latents there, and -log q."""
    values = jnp.linspace(noise.min(), noise.max(), 20_001).reshape(-1, *PIXEL)
    x = jnp.ones(values.shape, jnp.int32)
    z = np.ravel(dequantizer.start(x, values, end))
    return z, np.asarray(dequantizer.neg_log_q(values, end))


def lives_in_the_bin(dequantizer, x, z, end):
    """Return True if z determines x, that is log P(x | z) = 0."""
    return bool(np.all(np.asarray(dequantizer.log_reconstruction(x, z, end)) == 0))


@EACH
@ON_EACH_SCHEDULE
@LEVELS
def test_q_integrates_to_one(dequantizer, schedule, levels):
    end, noise, _ = one_pixel(dequantizer, schedule, levels)
    z, neg_log_q = grid(dequantizer, end, noise)
    np.testing.assert_allclose(np.trapezoid(np.exp(-neg_log_q), z), 1, atol=2e-4)


@EACH
@ON_EACH_SCHEDULE
@LEVELS
def test_entropy_equals_quadrature(dequantizer, schedule, levels):
    end, noise, _ = one_pixel(dequantizer, schedule, levels)
    z, neg_log_q = grid(dequantizer, end, noise)
    expected = np.trapezoid(np.exp(-neg_log_q) * neg_log_q, z)
    np.testing.assert_allclose(dequantizer.entropy(1, end), expected, atol=2e-3)
    np.testing.assert_allclose(
        dequantizer.entropy(7, end), 7 * dequantizer.entropy(1, end), rtol=1e-12
    )


@EACH
@ON_EACH_SCHEDULE
@LEVELS
def test_draws_have_the_density_q(dequantizer, schedule, levels):
    """Their distribution function is q's integral; their mean of -log q is the entropy."""
    end, noise, latents = one_pixel(dequantizer, schedule, levels)
    z, neg_log_q = grid(dequantizer, end, noise)
    q = np.exp(-neg_log_q)
    below = np.concatenate([[0], np.cumsum((q[1:] + q[:-1]) / 2 * np.diff(z))])
    drawn = np.ravel(latents)[:20_000]
    assert stats.kstest(drawn, lambda at: np.interp(at, z, below / below[-1])).pvalue > 1e-4
    found = np.asarray(dequantizer.neg_log_q(noise, end))
    if np.ptp(found) > 1e-9:
        toys.assert_mean(found, float(dequantizer.entropy(1, end)))
    else:
        np.testing.assert_allclose(found, dequantizer.entropy(1, end), rtol=1e-12)


@EACH
@ON_EACH_SCHEDULE
def test_many_pixels_add_up(dequantizer, schedule):
    """An image equals H W C independent pixels; the noise depends only on keys."""
    end = toys.clean_end(schedule, 5, TAU)
    noise = dequantizer.draw(toys.keys_of(3, 4), (2, 3, 2), end)
    assert noise.shape == (4, 2, 3, 2)
    again = dequantizer.draw(toys.keys_of(3, 4)[2:], (2, 3, 2), end)
    np.testing.assert_array_equal(again, noise[2:])
    each = dequantizer.neg_log_q(noise.reshape(-1, *PIXEL), end)
    expected = np.sum(np.reshape(each, (4, 12)), axis=1)
    np.testing.assert_allclose(dequantizer.neg_log_q(noise, end), expected, rtol=1e-12)


@EACH
@ON_EACH_SCHEDULE
@pytest.mark.parametrize("levels", [2, 3, 256])
def test_the_start_belongs_to_its_pixels(dequantizer, schedule, levels):
    """Either z / c lies in the bin of x, or P(x | z) is a distribution over all x."""
    end = toys.clean_end(schedule, levels, TAU)
    x = jax.random.randint(jax.random.key(0), (1000, *PIXEL), 0, levels)
    noise = jax.jit(lambda keys: dequantizer.draw(keys, PIXEL, end))(toys.keys_of(2, 1000))
    z = dequantizer.start(x, noise, end)
    if lives_in_the_bin(dequantizer, x, z, end):
        y = z / toys.latent_scale(dequantizer, end)
        np.testing.assert_array_equal(end.encoding.decode(y), x)
        assert np.max(np.abs(y - end.encoding.encode(x))) > 0.98 / levels
    else:
        log_probs = jax.lax.map(
            lambda level: dequantizer.log_reconstruction(jnp.full_like(x, level), z, end),
            jnp.arange(levels),
        )
        np.testing.assert_allclose(np.exp(log_probs).sum(0), 1, rtol=1e-12)


@EACH
@ON_EACH_SCHEDULE
def test_reconstruction_of_an_image_adds_its_pixels(dequantizer, schedule):
    end = toys.clean_end(schedule, 3, TAU)
    x = jnp.asarray([[0, 2], [1, 1], [2, 0]]).reshape(3, 2, 1, 1)
    noise = dequantizer.draw(toys.keys_of(0, 3), (2, 1, 1), end)
    z = dequantizer.start(x, noise, end)
    apart = dequantizer.log_reconstruction(x.reshape(6, *PIXEL), z.reshape(6, *PIXEL), end)
    whole = dequantizer.log_reconstruction(x, z, end)
    np.testing.assert_allclose(whole, np.reshape(apart, (3, 2)).sum(1), rtol=1e-12, atol=1e-14)


def test_where_the_ode_starts():
    """gamma_min; for uniform noise, the later gamma where the noise is as wide as the bin."""
    end = toys.clean_end(VariancePreserving(), 256, 3.0)
    assert TruncatedNormal().gamma_start(end) == end.gamma_min
    assert Variational().gamma_start(end) == end.gamma_min
    assert Uniform().gamma_start(end) == pytest.approx(-11.8)
    assert Uniform(start_gamma=-9.0).gamma_start(end) == -9.0
    for levels in (2, 17):
        start = Uniform().gamma_start(toys.clean_end(VariancePreserving(), levels, 3.0))
        assert np.exp(start / 2) * levels == pytest.approx(np.exp(-11.8 / 2) * 256)


def test_uniform_noise_does_not_start_where_the_model_is_not_defined():
    end = toys.clean_end(VariancePreserving(), 256, 0.5)
    assert end.gamma_min > -11.8
    assert Uniform().gamma_start(end) == end.gamma_min


@pytest.mark.parametrize("gamma", [float("nan"), float("inf"), True])
def test_the_start_of_uniform_noise_is_a_finite_number(gamma):
    with pytest.raises(ValueError, match="`start_gamma` must be a finite number"):
        Uniform(start_gamma=gamma)


def test_the_start_of_uniform_noise_is_one_of_the_path():
    end = toys.clean_end(VariancePreserving(), 256, 3.0)
    with pytest.raises(ValueError, match="must be at least gamma_min"):
        Uniform(start_gamma=end.gamma_number - 1e-3).gamma_start(end)
    assert Uniform(start_gamma=end.gamma_number).gamma_start(end) == end.gamma_number


def test_uniform_noise_costs_seven_bits_at_256_levels():
    end = toys.clean_end(VariancePreserving(), 256, 3.0)
    assert float(Uniform().entropy(10, end)) / (10 * np.log(2)) == pytest.approx(-7)


@ON_EACH_SCHEDULE
def test_truncated_normal_constants(schedule):
    """-log q and the entropy against SciPy's truncated normal."""
    end = toys.clean_end(schedule, 5, TAU)
    sigma = float(end.sigma)
    assert float(end.tau) == pytest.approx(float(end.alpha) / (sigma * 5))
    law = stats.truncnorm(-TAU, TAU, scale=sigma)
    u = jnp.asarray([-0.9, 0.0, 0.4]).reshape(3, *PIXEL)
    found = TruncatedNormal().neg_log_q(u, end)
    np.testing.assert_allclose(found, -law.logpdf(np.ravel(u) * sigma), rtol=1e-9)
    np.testing.assert_allclose(TruncatedNormal().entropy(1, end), law.entropy(), rtol=1e-9)
