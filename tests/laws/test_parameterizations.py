"""Laws of every parameterization on every schedule, and the paper's closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin import ode
from idode_gin.integration_variables import base as variables
from idode_gin.integration_variables.gamma import Gamma
from idode_gin.losses.first_order import FirstOrder
from idode_gin.parameterizations.base import AbstractParameterization
from idode_gin.parameterizations.data import Data
from idode_gin.parameterizations.noise import Noise
from idode_gin.parameterizations.score import Score
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.schedules.variance_preserving import VariancePreserving

from . import discovery, toys

EACH = discovery.each("parameterization", AbstractParameterization)
ON_EACH_SCHEDULE = discovery.each("schedule", AbstractSchedule)
GAMMAS = np.linspace(-13.3, 5.0, 11)
SHAPE = (GAMMAS.size, 2, 3, 1)
pytestmark = pytest.mark.usefixtures("float64")


def draw(schedule):
    """Images, noise, latents and an arbitrary network output at all of GAMMAS."""
    f, noise, output = jax.random.normal(jax.random.key(0), (3, *SHAPE))
    gamma = jnp.asarray(GAMMAS)
    return gamma, f, noise, ode.noised(schedule, f, gamma, noise), output


@EACH
@ON_EACH_SCHEDULE
def test_target_and_noise_hat_are_inverse(schedule, parameterization):
    gamma, _, noise, z, output = draw(schedule)
    target = parameterization.target(schedule, gamma, z, noise)
    back = parameterization.noise_hat(schedule, gamma, z, target)
    np.testing.assert_allclose(back, noise, rtol=1e-9, atol=1e-9)
    predicted = parameterization.noise_hat(schedule, gamma, z, output)
    back = parameterization.target(schedule, gamma, z, predicted)
    np.testing.assert_allclose(back, output, rtol=1e-9, atol=1e-9)


@EACH
@ON_EACH_SCHEDULE
def test_noise_hat_is_a_f_plus_b_z(schedule, parameterization):
    gamma, _, _, z, output = draw(schedule)
    a = parameterization.noise_scale(schedule, gamma).reshape(-1, 1, 1, 1)
    b = parameterization.latent_scale(schedule, gamma).reshape(-1, 1, 1, 1)
    found = parameterization.noise_hat(schedule, gamma, z, output)
    np.testing.assert_allclose(found, a * output + b * z, rtol=1e-12, atol=1e-12)
    assert np.all(np.abs(np.asarray(a)) > 0)
    assert np.all(np.isfinite(np.asarray(b)))


@EACH
@ON_EACH_SCHEDULE
def test_first_order_integrand(schedule, parameterization):
    """The loss, written with targets, is 1/2 |eps - eps_hat|^2 / p."""
    gamma, f, noise, z, output = draw(schedule)
    density = jnp.exp(-jnp.asarray(GAMMAS) / 9)
    field = ode.Field(
        schedule=schedule, parameterization=parameterization, network=lambda z, gamma: output
    )
    draws = FirstOrder().draw(toys.keys_of(0, SHAPE[0]), SHAPE[1:])._replace(noise=noise)
    found = FirstOrder()(field, f, gamma, density, draws).diffusion
    noise_hat = parameterization.noise_hat(schedule, gamma, z, output)
    expected = 0.5 * jnp.sum((noise - noise_hat) ** 2, axis=(1, 2, 3)) / density
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@EACH
@ON_EACH_SCHEDULE
def test_the_drift_depends_on_the_noise_prediction_only(schedule, parameterization):
    """dz/dgamma = (d log alpha / d gamma) z + sigma eps_hat / 2."""
    gamma, _, _, z, output = draw(schedule)
    field = toys.field_of(schedule, parameterization, lambda z, gamma: jnp.sin(z) + output)
    rate, sigma = (fn(gamma).reshape(-1, 1, 1, 1) for fn in (schedule.dlog_alpha, schedule.sigma))
    expected = rate * z + sigma * (jnp.sin(z) + output) / 2
    found = variables.rate(Gamma(), field, gamma, z)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(field.noise_hat(z, gamma), jnp.sin(z) + output, rtol=1e-9, atol=1e-9)


# a, b and F* of the paper's table, from alpha, sigma, f and eps written out again.
CLOSED_FORMS = {
    (VariancePreserving, Noise): lambda a, s, f, e: (1 + 0 * a, 0 * a, e),
    (VariancePreserving, Velocity): lambda a, s, f, e: (a, s, a * e - s * f),
    (VariancePreserving, Data): lambda a, s, f, e: (-a / s, 1 / s, f),
    (VariancePreserving, Score): lambda a, s, f, e: (-s, 0 * a, -e / s),
    (StraightPath, Noise): lambda a, s, f, e: (1 + 0 * a, 0 * a, e),
    (StraightPath, Velocity): lambda a, s, f, e: (2**0.5 * a, 1 + 0 * a, (e - f) / 2**0.5),
    (StraightPath, Data): lambda a, s, f, e: (-a / s, 1 / s, f),
    (StraightPath, Score): lambda a, s, f, e: (-s, 0 * a, -e / s),
}


@pytest.mark.parametrize(
    "pair", CLOSED_FORMS, ids=lambda pair: "-".join(each.__name__ for each in pair)
)
def test_closed_forms(pair):
    schedule, parameterization = (each() for each in pair)
    if isinstance(schedule, VariancePreserving):
        alpha, sigma = 1 / np.sqrt(1 + np.exp(GAMMAS)), 1 / np.sqrt(1 + np.exp(-GAMMAS))
    else:
        alpha, sigma = 1 / (1 + np.exp(GAMMAS / 2)), 1 / (1 + np.exp(-GAMMAS / 2))
    gamma, f, noise, _, _ = draw(schedule)
    columns = [each.reshape(-1, 1, 1, 1) for each in (alpha, sigma)]
    a, b, target = CLOSED_FORMS[pair](*columns, f, noise)
    z = jnp.asarray(columns[0] * f + columns[1] * noise)
    np.testing.assert_allclose(
        parameterization.noise_scale(schedule, gamma), jnp.ravel(a), rtol=1e-9
    )
    np.testing.assert_allclose(
        parameterization.latent_scale(schedule, gamma), jnp.ravel(b), rtol=1e-9
    )
    np.testing.assert_allclose(
        parameterization.weight(schedule, gamma), jnp.ravel(a) ** 2, rtol=1e-9
    )
    np.testing.assert_allclose(
        parameterization.target(schedule, gamma, z, noise), target, rtol=1e-8, atol=1e-8
    )


@EACH
@ON_EACH_SCHEDULE
def test_float32_keeps_its_relative_accuracy_at_both_ends(schedule, parameterization):
    single = jnp.asarray(GAMMAS, jnp.float32)
    for name in ("noise_scale", "latent_scale"):
        scale = getattr(parameterization, name)
        found = scale(schedule, single)
        assert found.dtype == jnp.float32
        exact = scale(schedule, single.astype(jnp.float64))
        np.testing.assert_allclose(found, exact, rtol=3e-6)
