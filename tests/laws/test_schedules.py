"""Laws of every schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.schedules.variance_preserving import VariancePreserving

from . import discovery

EACH = discovery.each("schedule", AbstractSchedule)
GAMMAS = np.linspace(-18.0, 12.0, 61)
NAMES = ("alpha", "sigma", "dlog_alpha", "dlog_sigma")


@EACH
def test_gamma_is_the_log_ratio_of_powers(schedule, float64):
    gamma = jnp.asarray(GAMMAS)
    found = 2 * (jnp.log(schedule.sigma(gamma)) - jnp.log(schedule.alpha(gamma)))
    np.testing.assert_allclose(found, GAMMAS, rtol=1e-12, atol=1e-12)


@EACH
def test_derivatives_equal_autodiff(schedule, float64):
    gamma = jnp.asarray(GAMMAS)
    for amplitude, derivative in (
        (schedule.alpha, schedule.dlog_alpha),
        (schedule.sigma, schedule.dlog_sigma),
    ):
        slope = jax.vmap(jax.grad(lambda g, fn=amplitude: jnp.log(fn(g))))(gamma)
        np.testing.assert_allclose(derivative(gamma), slope, rtol=1e-9, atol=1e-15)


@EACH
def test_the_two_rates_differ_by_one_half(schedule, float64):
    gamma = jnp.asarray(GAMMAS)
    difference = schedule.dlog_sigma(gamma) - schedule.dlog_alpha(gamma)
    np.testing.assert_allclose(difference, 0.5, rtol=1e-14)


@EACH
def test_signal_falls_and_noise_rises(schedule, float64):
    gamma = jnp.asarray(GAMMAS)
    assert np.all(np.diff(schedule.alpha(gamma)) < 0)
    assert np.all(np.diff(schedule.sigma(gamma)) > 0)
    assert np.all(np.asarray(schedule.alpha(gamma)) > 0)
    assert np.all(np.asarray(schedule.sigma(gamma)) > 0)


@EACH
@pytest.mark.parametrize("name", NAMES)
def test_float32_keeps_its_relative_accuracy_at_both_ends(schedule, name, float64):
    exact = getattr(schedule, name)(jnp.asarray(GAMMAS))
    single = getattr(schedule, name)(jnp.asarray(GAMMAS, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, exact, rtol=2e-6)


@EACH
def test_any_shape(schedule):
    gamma = jnp.linspace(-3.0, 3.0, 6)
    for name in NAMES:
        flat = getattr(schedule, name)(gamma)
        np.testing.assert_array_equal(getattr(schedule, name)(gamma.reshape(2, 3)).ravel(), flat)


def test_what_names_them(float64):
    """VP keeps alpha^2 + sigma^2 at one, the straight path alpha + sigma."""
    gamma = jnp.asarray(GAMMAS)
    powers = VariancePreserving().alpha(gamma) ** 2 + VariancePreserving().sigma(gamma) ** 2
    amplitudes = StraightPath().alpha(gamma) + StraightPath().sigma(gamma)
    np.testing.assert_allclose(powers, 1, rtol=1e-14)
    np.testing.assert_allclose(amplitudes, 1, rtol=1e-14)
