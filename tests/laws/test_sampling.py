"""Laws of sampling: the map from noise to images, known in closed form for Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin import likelihood, numerics, ode
from idode_gin.integration_variables.base import AbstractIntegrationVariable
from idode_gin.integration_variables.kappa import Kappa
from idode_gin.parameterizations.base import AbstractParameterization
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.samplers.ancestral import Ancestral
from idode_gin.samplers.heun import Heun
from idode_gin.samplers.ode import ODESampler
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.schedules.variance_preserving import VariancePreserving
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.divergence import Exact, Hutchinson
from idode_gin.solvers.fixed_grid import FixedGrid

from . import discovery, toys

EACH_SCHEDULE = discovery.each("schedule", AbstractSchedule)
EACH_VARIABLE = discovery.each("variable", AbstractIntegrationVariable)
EACH_PARAMETERIZATION = discovery.each("parameterization", AbstractParameterization)
SHAPE, LEVELS, TAU, NOISY = (2, 2, 1), 6, 2.0, 3.0
TIGHT = DormandPrince(rtol=1e-9, atol=1e-9)
pytestmark = pytest.mark.usefixtures("float64")


def from_noise(field, end, noise, solver=TIGHT):
    sampler = ODESampler(solver=solver)
    return jax.jit(lambda noise: sampler.from_noise(field, end, NOISY, noise))(noise)


@pytest.mark.full_cases(r"(Variance\w*-[DNS]|StraightPath-[DSV])\w*")
@EACH_PARAMETERIZATION
@EACH_SCHEDULE
def test_noise_goes_where_the_closed_form_says(schedule, parameterization):
    end, data = toys.clean_end(schedule, LEVELS, TAU), toys.gaussian(schedule)
    noise = jax.random.normal(jax.random.key(0), (5, *SHAPE))
    found = from_noise(data.field(parameterization), end, noise)
    start = schedule.sigma(jnp.asarray(NOISY)) * noise
    expected = data.transported(start, NOISY, end.gamma_min)
    np.testing.assert_allclose(found.latent, expected, atol=1e-6)
    y = expected / float(end.alpha)
    pixels = np.clip(np.floor((y + 1) * LEVELS / 2), 0, LEVELS - 1)
    np.testing.assert_array_equal(found.pixels, pixels)
    assert np.all(np.asarray(found.success))


@EACH_SCHEDULE
def test_samples_have_the_mean_and_covariance_of_the_model(schedule):
    end, data = toys.clean_end(schedule, LEVELS, TAU), toys.gaussian(schedule)
    sampler, field, count = ODESampler(solver=FixedGrid(steps=24)), data.field(), 20_000
    run = jax.jit(lambda keys: sampler(field, end, NOISY, SHAPE, keys))
    found = run(toys.keys_of(0, count))
    latents = np.reshape(found.latent, (count, -1))
    mean, std = (np.ravel(each) for each in data.pushed(end.gamma_min, NOISY))
    assert np.all(np.abs(latents.mean(0) - mean) < 4.5 * std / np.sqrt(count))
    scaled = np.cov((latents - mean).T) / np.outer(std, std)
    np.testing.assert_allclose(scaled, np.eye(4), atol=4.5 * np.sqrt(2 / count))
    assert found.pixels.shape == (count, *SHAPE)
    assert set(np.unique(found.pixels)) == set(range(LEVELS))


@pytest.mark.full_cases("StraightPath")
@EACH_SCHEDULE
def test_scoring_takes_samples_back_to_their_noise(schedule):
    """The log-density is that of the prior minus the log-determinant of the map."""
    end, data = toys.clean_end(schedule, LEVELS, TAU), toys.mixture(schedule)
    field = data.field(Velocity())
    noise = jax.random.normal(jax.random.key(0), (5, *SHAPE))
    z = from_noise(field, end, noise).latent
    probes = Hutchinson().draw(toys.keys_of(0, 5), SHAPE)
    back = jax.jit(
        lambda z: likelihood.log_density(
            field, z, end.gamma_min, NOISY, TIGHT, Hutchinson(), probes
        )
    )(z)
    sigma = float(schedule.sigma(jnp.asarray(NOISY)))
    np.testing.assert_allclose(back.latent, sigma * noise, atol=1e-6)
    prior = -0.5 * np.sum(np.asarray(noise) ** 2 + np.log(2 * np.pi * sigma**2), axis=(1, 2, 3))
    np.testing.assert_allclose(back.log_p - back.log_det, prior, atol=1e-6)


def test_the_density_is_the_determinant_of_the_map():
    """log p(z) = log p(noise) - log |det dz/dnoise|, with the Jacobian of the whole solve."""
    schedule = VariancePreserving()
    end, field = toys.clean_end(schedule, LEVELS, TAU), toys.mixture(schedule).field(Velocity())
    noise = jax.random.normal(jax.random.key(3), (1, *SHAPE))
    solver = FixedGrid(steps=100)

    def flat_map(flat):
        sampler = ODESampler(solver=solver)
        return sampler.from_noise(field, end, NOISY, flat.reshape(1, *SHAPE)).latent.ravel()

    jacobian = jax.jit(jax.jacfwd(flat_map))(noise.ravel())
    _, log_det = np.linalg.slogdet(np.asarray(jacobian))
    z = from_noise(field, end, noise, solver).latent
    signs = np.asarray(np.meshgrid(*[[-1.0, 1.0]] * 4)).reshape(4, -1).T
    probes = jnp.asarray(signs).reshape(16, 1, *SHAPE)
    found = jax.jit(
        lambda z: likelihood.log_density(
            field, z, end.gamma_min, NOISY, solver, Hutchinson(), probes
        )
    )(z)
    normal = -0.5 * float(jnp.sum(noise**2)) - 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(found.log_p[0], normal - log_det, atol=1e-5)


def test_failed_solves_are_reported():
    """Of images that need another number of steps each, those that need more than ten."""
    schedule = StraightPath()
    end, field = toys.clean_end(schedule, LEVELS, TAU), toys.mixture(schedule).field()
    noise = jnp.ones((4, *SHAPE)) * jnp.asarray([0.1, 1.0, 2.0, 4.0])[:, None, None, None]
    found = from_noise(field, end, noise, DormandPrince(max_steps=10))
    np.testing.assert_array_equal(found.success, [True, True, False, True])


@pytest.mark.full_cases("(Exponential|Gamma|Natural).*")
@EACH_VARIABLE
def test_images_and_their_density_are_the_same_in_each_variable(variable):
    """Equal up to the solver's error, with arguments per image and with lanes."""
    schedule = StraightPath()
    end, data = toys.clean_end(schedule, LEVELS, TAU), toys.gaussian(schedule)
    noise, shifts = jax.random.normal(jax.random.key(0), (5, *SHAPE)), jnp.linspace(-1, 1, 5)

    def network(z, gamma, shift):
        moved = z - numerics.expand(schedule.alpha(gamma) * shift, z)  # data moved by `shift`
        return Velocity().target(schedule, gamma, z, data.noise_hat(moved, gamma))

    field = ode.Field(
        schedule=schedule, parameterization=Velocity(), network=network, args=(shifts,)
    )
    sampler = ODESampler(solver=TIGHT, variable=variable, lanes=2)
    found = jax.jit(lambda noise: sampler.from_noise(field, end, NOISY, noise))(noise)
    moved = np.asarray(shifts)[:, None, None, None]
    scale = {gamma: float(schedule.alpha(jnp.asarray(gamma))) for gamma in (NOISY, end.gamma_min)}
    start = schedule.sigma(jnp.asarray(NOISY)) * noise
    expected = data.transported(start - scale[NOISY] * moved, NOISY, end.gamma_min)
    expected = expected + scale[end.gamma_min] * moved
    np.testing.assert_allclose(found.latent, expected, atol=1e-6)
    back = jax.jit(lambda z: sampler.to_noise(field, end, NOISY, z))(found.latent)
    np.testing.assert_allclose(back.noise, noise, atol=1e-5)

    dense, probes = sampler.with_log_prob(Exact()), Exact().draw(toys.keys_of(0, 5), SHAPE)
    both = jax.jit(lambda noise: dense.from_noise(field, end, NOISY, noise, probes))(noise)
    np.testing.assert_allclose(both.latent, expected, atol=1e-6)
    _, std = data.pushed(end.gamma_min, NOISY)  # the prior's sigma is in it
    log_p = numerics.log_normal(noise) - np.sum(np.log(std))
    np.testing.assert_allclose(both.log_p, log_p, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("divergence", [Exact(), Hutchinson(num_probes=2)], ids=["exact", "probes"])
@EACH_SCHEDULE
def test_the_density_of_samples_is_what_scoring_them_finds(schedule, divergence):
    end, field = toys.clean_end(schedule, LEVELS, TAU), toys.mixture(schedule).field(Velocity())
    keys = toys.keys_of(4, 5)
    sampler = ODESampler(solver=TIGHT)

    @jax.jit
    def drawn(keys):
        return sampler.with_log_prob(divergence)(field, end, NOISY, SHAPE, keys)

    found = drawn(keys)
    probes = sampler.with_log_prob(divergence).probes(keys, SHAPE)
    scored = jax.jit(
        lambda z: likelihood.log_density(field, z, end.gamma_min, NOISY, TIGHT, divergence, probes)
    )(found.latent)
    np.testing.assert_allclose(found.log_p, scored.log_p, atol=1e-6)
    alone = jax.jit(lambda keys: sampler(field, end, NOISY, SHAPE, keys))(keys)
    assert alone.log_p is None
    np.testing.assert_allclose(found.latent, alone.latent, atol=1e-6)
    np.testing.assert_array_equal(found.pixels, alone.pixels)


def test_samples_with_their_density_take_the_same_steps():
    """A coarse grid's error depends on variable and solver, and is the same with the density."""
    schedule, keys = VariancePreserving(), toys.keys_of(4, 5)
    end, field = toys.clean_end(schedule, LEVELS, TAU), toys.mixture(schedule).field(Velocity())
    sampler = ODESampler(solver=FixedGrid(steps=2), variable=Kappa(), lanes=2)
    dense = sampler.with_log_prob(Exact())
    alone, both = (
        jax.jit(lambda keys, each=each: each(field, end, NOISY, SHAPE, keys).latent)(keys)
        for each in (sampler, dense)
    )
    np.testing.assert_allclose(both, alone, rtol=1e-12)
    assert dense.lanes == 2


def test_the_density_of_gaussian_samples_is_exact():
    """In nats per image, of latents: against the normal distribution that the ODE ends in."""
    schedule = StraightPath()
    end, data = toys.clean_end(schedule, LEVELS, TAU), toys.gaussian(schedule)
    sampler = ODESampler(solver=TIGHT).with_log_prob(Exact())
    found = jax.jit(lambda keys: sampler(data.field(), end, NOISY, SHAPE, keys))(toys.keys_of(2, 4))
    mean, std = data.pushed(end.gamma_min, NOISY)
    expected = -0.5 * ((found.latent - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found.log_p, expected.sum(axis=(1, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("sampler", [Ancestral(), Heun()], ids=["noisy", "other steps"])
def test_samplers_that_leave_the_ode_have_no_density(sampler):
    with pytest.raises(
        ValueError, match="`return_log_prob` needs .* follows the ODE, got .* Use ODE"
    ):
        sampler.with_log_prob(Hutchinson())
