"""Laws that every sampler keeps, and closed forms of each one's steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.parameterizations.velocity import Velocity
from idode_gin.samplers import ancestral, dpm_solver
from idode_gin.samplers.ancestral import Ancestral
from idode_gin.samplers.base import AbstractDeterministicSampler, AbstractSampler
from idode_gin.samplers.dpm_solver import DPMSolverPlusPlus
from idode_gin.samplers.grids import AbstractGrid, LogSNR, PowerOfKappa
from idode_gin.samplers.heun import Heun
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.schedules.variance_preserving import VariancePreserving

from . import discovery, toys

EACH_SAMPLER = discovery.each("sampler", AbstractSampler)
EACH_DETERMINISTIC = discovery.each("sampler", AbstractDeterministicSampler)
EACH_GRID = discovery.each("grid", AbstractGrid)
EACH_SCHEDULE = discovery.each("schedule", AbstractSchedule)
SHAPE, LEVELS, TAU, NOISY = (2, 2, 1), 6, 2.0, 3.0
pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.full_cases("(Ancestral|ODESampler).*")
@EACH_SAMPLER
def test_samples_have_the_mean_and_variance_of_the_data(sampler):
    """gamma_max is so large that the mismatch of the prior is negligible."""
    schedule = StraightPath()
    end, data, count = toys.clean_end(schedule, LEVELS, TAU), toys.gaussian(schedule), 4_000
    run = jax.jit(lambda keys: sampler(data.field(Velocity()), end, 9.0, SHAPE, keys))
    found = run(toys.keys_of(0, count))
    z = np.reshape(found.latent, (count, -1))
    mean, variance = (
        np.ravel(np.broadcast_to(each, SHAPE))
        for each in (data.centre(end.gamma), data.variance(end.gamma))
    )
    assert np.all(np.abs(z.mean(0) - mean) < 4.5 * np.sqrt(variance / count))
    assert np.all(np.abs(z.var(0) / variance - 1) < 4.5 * np.sqrt(2 / count))
    correlation = np.corrcoef(z.T) - np.eye(4)
    assert np.all(np.abs(correlation) < 4.5 / np.sqrt(count))
    y = np.reshape(found.latent / end.alpha, -1)
    pixels = np.clip(np.floor((y + 1) * LEVELS / 2), 0, LEVELS - 1)
    np.testing.assert_array_equal(np.ravel(found.pixels), pixels)
    assert np.all(np.asarray(found.success))


@pytest.mark.full_cases("(Ancestral|ODESampler).*")
@EACH_SAMPLER
def test_an_image_depends_on_its_own_key_alone(sampler):
    schedule = VariancePreserving()
    end, field = toys.clean_end(schedule, LEVELS, TAU), toys.mixture(schedule).field()
    run = jax.jit(lambda keys: sampler(field, end, NOISY, SHAPE, keys).latent)
    keys = toys.keys_of(0, 6)
    whole, some = run(keys), run(keys[jnp.asarray([5, 2])])
    np.testing.assert_allclose(some, whole[jnp.asarray([5, 2])], rtol=1e-12)
    assert len(np.unique(np.asarray(whole))) == 24


@pytest.mark.full_cases("(Ancestral|ODESampler).*")
@EACH_SAMPLER
def test_network_evaluations_are_counted(sampler):
    """The reported number equals the number of network calls for one image."""
    schedule, called = StraightPath(), []
    end, data = toys.clean_end(schedule, LEVELS, TAU), toys.gaussian(schedule)

    def noise_hat(z, gamma):
        jax.debug.callback(lambda: called.append(1))
        return data.noise_hat(z, gamma)

    field = toys.field_of(schedule, Velocity(), noise_hat)
    found = sampler(field, end, NOISY, SHAPE, toys.keys_of(0, 1))
    jax.effects_barrier()
    assert int(found.num_evaluations[0]) == len(called)


@EACH_DETERMINISTIC
def test_samplers_without_noise_in_their_steps_make_the_same_images(sampler):
    """With the same key, all start with the same noise and follow the ODE."""
    schedule = VariancePreserving()
    end, data = toys.clean_end(schedule, LEVELS, TAU), toys.gaussian(schedule)
    keys = toys.keys_of(3, 5)
    found = jax.jit(lambda keys: sampler(data.field(), end, NOISY, SHAPE, keys))(keys)
    halves = jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[0], SHAPE))(keys)
    start = schedule.sigma(jnp.asarray(NOISY)) * halves
    expected = data.transported(start, NOISY, end.gamma_min)
    np.testing.assert_allclose(found.latent, expected, atol=6e-3)


def errors(make, steps, schedule):
    """Root mean square error of the map from noise to latents, for each number of steps."""
    end, data = toys.clean_end(schedule, LEVELS, TAU), toys.gaussian(schedule)
    noise = jax.random.normal(jax.random.key(0), (8, *SHAPE))
    start = schedule.sigma(jnp.asarray(NOISY)) * noise
    exact = data.transported(start, NOISY, end.gamma_min)

    def error(sampler):
        run = jax.jit(lambda noise: sampler.from_noise(data.field(), end, NOISY, noise).latent)
        return np.sqrt(np.mean((run(noise) - exact) ** 2))

    return np.asarray([error(make(number)) for number in steps])


METHODS = {
    "Heun": (2, lambda **given: Heun(**given)),
    **{
        f"order {order}": (
            order,
            lambda order=order, **given: DPMSolverPlusPlus(order=order, **given),
        )
        for order in (1, 2, 3)
    },
}


@EACH_GRID
@pytest.mark.parametrize("method", METHODS)
def test_samplers_converge_at_their_order(method, grid):
    order, make = METHODS[method]
    found = errors(lambda steps: make(steps=steps, grid=grid), (128, 256), StraightPath())
    assert np.log2(found[0] / found[1]) == pytest.approx(order, abs=0.1)
    assert found[1] < 0.1**order


@EACH_SCHEDULE
def test_order_1_is_ddim(schedule):
    """z_s = alpha_s f_hat + sigma_s eps_hat, written out step by step."""
    end, data = toys.clean_end(schedule, LEVELS, TAU), toys.mixture(schedule)
    noise = jax.random.normal(jax.random.key(1), (3, *SHAPE))
    sampler = DPMSolverPlusPlus(steps=5, order=1)
    found = sampler.from_noise(data.field(Velocity()), end, NOISY, noise)
    gammas = jnp.linspace(NOISY, end.gamma_min, 6)
    z = schedule.sigma(gammas[0]) * noise
    for here, there in zip(gammas[:-1], gammas[1:], strict=True):
        eps = data.noise_hat(z, jnp.full(3, here))
        f_hat = (z - schedule.sigma(here) * eps) / schedule.alpha(here)
        z = schedule.alpha(there) * f_hat + schedule.sigma(there) * eps
    np.testing.assert_allclose(found.latent, z, rtol=1e-10)


def test_weights_integrate_polynomials_exactly():
    """Order k is exact where f_hat is a polynomial in lambda of degree k - 1."""
    gammas = LogSNR().gammas(4.0, -5.0, 6) + np.asarray([0, 0.2, -0.1, 0.05, 0.1, -0.2, 0])
    at = -gammas / 2
    nodes, shares = np.polynomial.legendre.leggauss(60)
    for order in (1, 2, 3):
        weights = dpm_solver.weights(gammas, order)
        for step in range(2 if order == 3 else order - 1, 6):
            half = (at[step + 1] - at[step]) / 2
            inner = at[step] + half * (nodes + 1)
            for degree in range(order):
                exact = np.sum(half * shares * np.exp(inner - at[step + 1]) * inner**degree)
                known = at[step - np.arange(order)] ** degree
                np.testing.assert_allclose(weights[step] @ known, exact, rtol=1e-9, atol=1e-12)


def test_the_first_step_of_order_3_is_corrected():
    """After two steps of order 3 a linear f_hat has been integrated exactly, and not before."""
    gammas = np.asarray([4.0, 2.5, 1.2])
    at = -gammas / 2

    def exact(stop, start=at[0]):
        """integral of e^{lambda - stop} lambda."""
        return (stop - 1) - (start - 1) * np.exp(start - stop)

    weights = dpm_solver.weights(gammas, 3)
    first = weights[0] @ [at[0], 0, 0]
    second = np.exp(at[1] - at[2]) * first + weights[1] @ [at[1], at[0], 0]
    assert abs(first - exact(at[1])) > 1e-2
    assert second == pytest.approx(exact(at[2]), rel=1e-12)


@EACH_SCHEDULE
def test_ancestral_steps_are_the_posterior_of_the_forward_process(schedule):
    """q(z_s | z_t, f) by conditioning a Gaussian: z_t = alpha_ts z_s + sigma_ts eps."""
    gammas = np.asarray([NOISY, 0.7, -2.0, -4.5])
    scale, std = ancestral.posterior(gammas)
    alpha, sigma = schedule.alpha(jnp.asarray(gammas)), schedule.sigma(jnp.asarray(gammas))
    f, eps = 0.3, -1.2
    for step in range(3):
        (a_t, a_s), (s_t, s_s) = alpha[step : step + 2], sigma[step : step + 2]
        a_ts, var_ts = a_t / a_s, s_t**2 - (a_t / a_s * s_s) ** 2
        z_t = a_t * f + s_t * eps
        precision = 1 / s_s**2 + a_ts**2 / var_ts
        mean = (a_s * f / s_s**2 + a_ts * z_t / var_ts) / precision
        assert a_s * (z_t / a_t - scale[step] * eps) == pytest.approx(float(mean), rel=1e-9)
        assert (a_s * std[step]) ** 2 == pytest.approx(float(1 / precision), rel=1e-9)
        c = -np.expm1(gammas[step + 1] - gammas[step])
        assert (a_s * std[step]) ** 2 == pytest.approx(float(s_s**2 * c), rel=1e-9)


def test_ancestral_moments_follow_their_recursion():
    """For Gaussian data a step is affine: mean and variance are known for few steps, too."""
    schedule, count, steps = VariancePreserving(), 20_000, 6
    end, data = toys.clean_end(schedule, LEVELS, TAU), toys.gaussian(schedule)
    sampler = Ancestral(steps=steps)
    run = jax.jit(lambda keys: sampler(data.field(), end, NOISY, SHAPE, keys).latent)
    y = np.asarray(run(toys.keys_of(1, count)) / end.alpha).reshape(count, -1)
    gammas = np.linspace(NOISY, end.gamma_min, steps + 1)
    mean, variance = 0.0, np.exp(gammas[0])
    for here, there in zip(np.exp(gammas[:-1]), np.exp(gammas[1:]), strict=True):  # kappa squared
        # E[f | y] moves y towards itself by the share c = 1 - there / here.
        pull = (1 - there / here) * here / (data.std**2 + here)
        mean = mean + pull * (data.mean - mean)
        variance = (1 - pull) ** 2 * variance + there * (1 - there / here)
    mean, variance = np.ravel(mean), np.ravel(variance)
    assert np.all(np.abs(y.mean(0) - mean) < 4.5 * np.sqrt(variance / count))
    assert np.all(np.abs(y.var(0) / variance - 1) < 4.5 * np.sqrt(2 / count))


@EACH_GRID
def test_grids_fall_from_end_to_end(grid):
    found = grid.gammas(5.0, -13.3, 11)
    assert (found[0], found[-1], found.dtype) == (5.0, -13.3, np.float64)
    assert np.all(np.diff(found) < 0)
    np.testing.assert_array_equal(grid.gammas(5.0, -13.3, 1), [5.0, -13.3])


def test_grids_between_kappa_and_gamma():
    kappa = np.exp(PowerOfKappa(rho=1.0).gammas(2.0, -3.0, 4) / 2)
    np.testing.assert_allclose(kappa, np.linspace(np.exp(1), np.exp(-1.5), 5))
    near = PowerOfKappa(rho=1e6).gammas(2.0, -3.0, 4)
    np.testing.assert_allclose(near, LogSNR().gammas(2.0, -3.0, 4), atol=1e-4)


@pytest.mark.parametrize("rho", [1e-3, 1e-2])
def test_a_grid_whose_powers_are_too_large_for_numbers(rho):
    gammas = PowerOfKappa(rho=rho).gammas(5.0, -13.3, 4)
    assert np.all(np.isfinite(gammas))
    assert np.all(np.diff(gammas) < 0)
    np.testing.assert_allclose(gammas[1], 5.0 + 2 * rho * np.log(0.75), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DPMSolverPlusPlus(order=True), "`order` must be an integer"),
        (lambda: DPMSolverPlusPlus(order=4), "`order` must be 1, 2 or 3, got order=4"),
        (lambda: DPMSolverPlusPlus(order=0), "`order` must be an integer, 1 or more, got order=0"),
        (lambda: DPMSolverPlusPlus(steps=0), "`steps` must be an integer, 1 or more, got steps=0"),
        (lambda: Heun(steps=0), "`steps` must be an integer, 1 or more, got steps=0"),
        (lambda: Ancestral(steps=-1), "`steps` must be an integer, 1 or more, got steps=-1"),
        (lambda: PowerOfKappa(rho=0.0), "`rho` must be greater than zero, got rho=0.0"),
    ],
)
def test_misuse_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
