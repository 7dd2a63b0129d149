"""Laws of every gamma(t)."""

import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.schedules.time.base import AbstractTime
from idode_gin.schedules.time.linear import Linear, gamma_min_for_levels

from . import discovery

EACH = discovery.each("time", AbstractTime)
pytestmark = pytest.mark.usefixtures("float64")


@EACH
def test_it_runs_from_end_to_end(time):
    ends = time.gamma(jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(ends, [time.gamma_min, time.gamma_max], rtol=1e-12)
    assert time.gamma_min < time.gamma_max


@EACH
def test_it_increases(time):
    gammas = np.asarray(time.gamma(jnp.linspace(0, 1, 257)))
    assert np.all(np.diff(gammas) > 0)


@EACH
def test_derivative_equals_finite_differences(time):
    t, step = jnp.linspace(0.01, 0.99, 23), 1e-5
    slope = (time.gamma(t + step) - time.gamma(t - step)) / (2 * step)
    np.testing.assert_allclose(time.dgamma(t), slope, rtol=1e-7)


@EACH
def test_rescaled_gamma_is_the_fraction_of_the_range(time):
    middle = (time.gamma_min + time.gamma_max) / 2
    gammas = jnp.asarray([time.gamma_min, middle, time.gamma_max])
    np.testing.assert_allclose(time.rescale(gammas), [0, 0.5, 1], atol=1e-12)


def test_linear_is_linear():
    time = Linear(gamma_min=-4.0, gamma_max=2.0)
    np.testing.assert_allclose(time.gamma(jnp.asarray([0.25, 0.5])), [-2.5, -1.0])
    np.testing.assert_allclose(time.dgamma(jnp.asarray([0.1, 0.9])), 6.0)


@pytest.mark.parametrize("ends", [(2.0, 2.0), (3.0, -1.0), (float("nan"), 1.0)])
def test_the_ends_must_be_in_order(ends):
    with pytest.raises(ValueError, match="below `gamma_max`"):
        Linear(gamma_min=ends[0], gamma_max=ends[1])


def test_the_clean_end_follows_the_levels():
    """Half a bin stays at three standard deviations of the noise."""
    for levels in (2, 17, 256):
        tau = np.exp(-gamma_min_for_levels(levels) / 2) / levels
        np.testing.assert_allclose(tau, 3, rtol=1e-12)
    np.testing.assert_allclose(gamma_min_for_levels(256), -13.2875, atol=1e-4)
    with pytest.raises(ValueError, match="at least 2"):
        gamma_min_for_levels(1)
