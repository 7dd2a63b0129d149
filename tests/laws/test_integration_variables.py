"""Laws of every integration variable: path and density do not depend on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin import likelihood, numerics
from idode_gin.integration_variables.base import AbstractIntegrationVariable
from idode_gin.integration_variables.exponential import Exponential
from idode_gin.integration_variables.gamma import Gamma
from idode_gin.integration_variables.natural import Natural
from idode_gin.parameterizations.base import AbstractParameterization
from idode_gin.parameterizations.score import Score
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.divergence import Exact
from idode_gin.solvers.fixed_grid import FixedGrid

from . import discovery, toys

EACH = discovery.each("variable", AbstractIntegrationVariable)
EACH_SCHEDULE = discovery.each("schedule", AbstractSchedule)
EACH_PARAMETERIZATION = discovery.each("parameterization", AbstractParameterization)
GAMMAS = np.linspace(-13.0, 6.0, 20)
SHAPE, CLEAN, NOISY = (2, 2, 1), -6.0, 5.0
pytestmark = pytest.mark.usefixtures("float64")


def field_of(schedule, parameterization):
    return toys.gaussian(schedule).field(parameterization)


def slope(function, gammas):
    return jax.vmap(jax.grad(lambda gamma: function(gamma)))(jnp.asarray(gammas))


@EACH
@EACH_SCHEDULE
@EACH_PARAMETERIZATION
def test_time_is_monotone_and_undone_and_the_ode_is_the_drift(variable, schedule, parameterization):
    """dy/ds ds/dgamma = d(z / m)/dgamma, for any output: term by term."""
    field = field_of(schedule, parameterization)
    times = variable.time(field, jnp.asarray(GAMMAS))
    steps = np.diff(times)
    assert np.all(steps > 0) or np.all(steps < 0)
    at = variable.coefficients(field, times)
    np.testing.assert_allclose(at.gamma, GAMMAS, atol=1e-9)
    np.testing.assert_allclose(
        np.log(at.scale), variable.log_scale(field, jnp.asarray(GAMMAS)), atol=1e-9
    )
    per_gamma = slope(lambda gamma: variable.time(field, gamma), GAMMAS)
    dlog_scale = slope(lambda gamma: variable.log_scale(field, gamma), GAMMAS)
    linear, output = field.linear_rate(at.gamma), field.output_rate(at.gamma)
    np.testing.assert_allclose(at.linear * per_gamma, linear - dlog_scale, atol=1e-9)
    np.testing.assert_allclose(at.output * per_gamma, output / at.scale, rtol=1e-8, atol=1e-12)


@EACH_SCHEDULE
@EACH_PARAMETERIZATION
def test_in_natural_time_the_output_is_the_velocity(schedule, parameterization):
    at = Natural().coefficients(field_of(schedule, parameterization), jnp.asarray([0.3, 0.6]))
    np.testing.assert_array_equal(at.linear, 0)
    if not isinstance(parameterization, Score):
        np.testing.assert_array_equal(at.output, 1)


@pytest.mark.full_cases(".*StraightPath.*")
@EACH
@EACH_SCHEDULE
@pytest.mark.parametrize("solver", [DormandPrince(rtol=1e-9, atol=1e-9), Adams(steps=1000)])
def test_gaussian_density_is_exact_in_each(variable, schedule, solver):
    if isinstance(solver, Adams) and not isinstance(variable, (Gamma, Exponential)):
        solver = FixedGrid(steps=1000)  # equal steps of these times are too few at the clean end
    data = toys.gaussian(schedule)
    z = jax.random.normal(jax.random.key(0), (3, *SHAPE))
    probes = Exact().draw(toys.keys_of(0, 3), SHAPE)
    found = jax.jit(
        lambda z: likelihood.log_density(
            data.field(Velocity()), z, CLEAN, NOISY, solver, Exact(), probes, variable
        )
    )(z)
    mean, std = data.pushed(CLEAN, NOISY)
    expected = numerics.log_normal((z - mean) / std) - np.sum(np.log(std))
    np.testing.assert_allclose(found.log_p, expected, atol=2e-5)
    np.testing.assert_allclose(found.log_prior + found.log_det, found.log_p, rtol=1e-12)


def test_known_factors_make_adams_exact_where_the_noise_is_constant():
    """y' = e^{t/2} is solved exactly in one step of any size only with the known factor."""

    def field(t, y):
        return jnp.exp(t / 2)[:, None] * jnp.ones_like(y)

    def error(weight_fns):
        found = Adams(steps=2).solve(field, jnp.zeros((1, 1)), -4.0, 4.0, weight_fns=weight_fns)
        return abs(float(found.state[0, 0]) - 2 * (np.exp(2) - np.exp(-2)))

    assert error((lambda t: jnp.exp(t / 2),)) < 1e-12
    assert error(None) > 0.1
