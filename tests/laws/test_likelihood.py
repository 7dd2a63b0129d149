"""Likelihood of the ODE, compared with densities and probabilities in closed form."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from idode_gin import likelihood
from idode_gin.dequantizers.base import AbstractDequantizer
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.dequantizers.variational import Variational
from idode_gin.integration_variables.exponential import Exponential
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.parameterizations.base import AbstractParameterization
from idode_gin.parameterizations.noise import Noise
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.schedules.variance_preserving import VariancePreserving
from idode_gin.solvers import probes as probe_lib
from idode_gin.solvers import tableaus
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.divergence import AbstractDivergence, Exact, Hutchinson
from idode_gin.solvers.fixed_grid import FixedGrid

from . import discovery, toys

EACH_SCHEDULE = discovery.each("schedule", AbstractSchedule)
EACH_PARAMETERIZATION = discovery.each("parameterization", AbstractParameterization)
EACH_DIVERGENCE = discovery.each("divergence", AbstractDivergence)
EACH_DEQUANTIZER = discovery.each("dequantizer", AbstractDequantizer)
SHAPE, DIMS, BATCH = (2, 2, 1), 4, 5
CLEAN, NOISY = -6.0, 3.0
TIGHT = DormandPrince(rtol=1e-9, atol=1e-9)
pytestmark = pytest.mark.usefixtures("float64")


def density_of(field, z, solver=TIGHT, divergence=None, gamma_max=NOISY, seed=0):
    """`log_density` from CLEAN, compiled."""
    divergence = divergence or Hutchinson()

    def run(z):
        probes = divergence.draw(toys.keys_of(seed, z.shape[0]), z.shape[1:])
        return likelihood.log_density(field, z, CLEAN, gamma_max, solver, divergence, probes)

    return jax.jit(run)(z)


def log_normal(z, mean, std):
    """nats per image."""
    return stats.norm(mean, std).logpdf(np.asarray(z)).sum((1, 2, 3))


# --- the density of latents


@dataclasses.dataclass(frozen=True)
class OneEstimate(AbstractDivergence):
    """Of two probes; `Hutchinson` has two."""

    inner: Hutchinson = Hutchinson(num_probes=2)

    def draw(self, keys, shape):
        return self.inner.draw(keys, shape)

    def value_and_traces(self, fn, x, probes):
        value, traces = self.inner.value_and_traces(fn, x, probes)
        return value, jnp.mean(traces, axis=1, keepdims=True)

    def variance_of_mean(self, estimates, dims):
        return jnp.full(estimates.shape[0], jnp.nan)


@pytest.mark.parametrize("solver", [TIGHT, Adams(steps=16)])
def test_a_divergence_may_have_fewer_estimates_than_probes(solver):
    data = toys.mixture(VariancePreserving(), SHAPE)
    field, z = data.field(Velocity()), jax.random.normal(jax.random.key(0), (BATCH, *SHAPE))
    one = density_of(field, z, solver, OneEstimate())
    two = density_of(field, z, solver, Hutchinson(num_probes=2))
    np.testing.assert_allclose(one.log_p, two.log_p, rtol=1e-7)


@pytest.mark.full_cases(r"(Variance\w*-[DNS]|Str\w*-[DSV])\w*")
@EACH_PARAMETERIZATION
@EACH_SCHEDULE
def test_gaussian_density_is_exact(schedule, parameterization):
    """The ODE is linear with a diagonal Jacobian, so random signs give its trace exactly."""
    data = toys.gaussian(schedule)
    z = jax.random.normal(jax.random.key(0), (BATCH, *SHAPE))
    found = density_of(data.field(parameterization), z, divergence=Hutchinson())
    mean, std = data.pushed(CLEAN, NOISY)
    np.testing.assert_allclose(found.log_p, log_normal(z, mean, std), atol=1e-6)
    arrived = data.transported(z, CLEAN, NOISY)
    np.testing.assert_allclose(found.latent, arrived, atol=1e-6)
    ratio = np.asarray(data.variance(jnp.asarray(NOISY)) / data.variance(jnp.asarray(CLEAN)))
    np.testing.assert_allclose(found.log_det, 0.5 * np.sum(np.log(ratio)), atol=1e-6)
    assert np.all(np.asarray(found.success))
    assert np.all(np.asarray(found.num_evaluations) > 10)


@EACH_DIVERGENCE
def test_gaussian_density_with_every_divergence(divergence):
    data = toys.gaussian(StraightPath())
    z = jax.random.normal(jax.random.key(0), (BATCH, *SHAPE))
    found = density_of(data.field(Velocity()), z, FixedGrid(steps=100), divergence)
    expected = log_normal(z, *data.pushed(CLEAN, NOISY))
    np.testing.assert_allclose(found.log_p, expected, atol=1e-5)


@pytest.mark.parametrize("ends", [(NOISY, CLEAN), (CLEAN, CLEAN), (CLEAN, 2e4)])
def test_a_likelihood_runs_to_the_noise_where_alpha_is_there(ends):
    field, z = toys.gaussian(StraightPath()).field(Noise()), jnp.zeros((2, *SHAPE))
    probes = jnp.zeros((1, *z.shape))
    with pytest.raises(ValueError, match="must start below its noise end|must be above zero"):
        likelihood.log_density(field, z, *ends, FixedGrid(), Hutchinson(), probes, Exponential())


SOLVERS = {
    **{
        f"FixedGrid-{make.__name__}": (FixedGrid(steps=steps, tableau=make()), tolerance)
        for make, steps, tolerance in (
            (tableaus.euler, 4000, 5e-3),
            (tableaus.midpoint, 1200, 1e-5),
            (tableaus.heun, 1200, 2e-5),
            (tableaus.runge_kutta_4, 60, 1e-5),
            (tableaus.dormand_prince, 40, 1e-5),
        )
    },
    "DormandPrince": (DormandPrince(rtol=1e-7, atol=1e-7), 1e-5),
}


@pytest.mark.full_cases(r"Variance\w*.*")
@pytest.mark.parametrize("name", SOLVERS)
@EACH_SCHEDULE
def test_gaussian_density_with_every_method(schedule, name):
    solver, nats_per_dim = SOLVERS[name]
    data = toys.gaussian(schedule)
    z = jax.random.normal(jax.random.key(1), (BATCH, *SHAPE))
    found = density_of(data.field(Velocity()), z, solver)
    expected = log_normal(z, *data.pushed(CLEAN, NOISY))
    np.testing.assert_allclose(found.log_p, expected, atol=nats_per_dim * DIMS)


@pytest.mark.full_cases(r"Variance\w*.*")
@EACH_SCHEDULE
def test_gaussian_density_forgets_the_prior(schedule):
    """With gamma_max far out the prior fits, and p(z) is the forward process's own marginal."""
    data = toys.gaussian(schedule)
    z = jax.random.normal(jax.random.key(2), (BATCH, *SHAPE))
    found = density_of(data.field(Velocity()), z, gamma_max=30.0)
    gamma = jnp.asarray(CLEAN)
    expected = log_normal(z, np.asarray(data.centre(gamma)), np.sqrt(data.variance(gamma)))
    np.testing.assert_allclose(found.log_p, expected, atol=1e-5 * DIMS)


@EACH_SCHEDULE
def test_mixture_density_is_exact(schedule):
    """A nonlinear ODE whose pixels depend on each other; its marginals are known."""
    data = toys.mixture(schedule)
    gamma = jnp.full(20, CLEAN)
    alpha, sigma = float(schedule.alpha(gamma[0])), float(schedule.sigma(gamma[0]))
    noise = jax.random.normal(jax.random.key(0), (20, *SHAPE))
    z = alpha * data.sample(0, 20) + sigma * noise
    solver = DormandPrince(rtol=1e-7, atol=1e-7)
    found = density_of(data.field(Velocity()), z, solver, Exact(), gamma_max=30.0)
    np.testing.assert_allclose(found.log_p, data.log_p(z, gamma), atol=1e-5 * DIMS)


@pytest.mark.full_cases("probe1")
@pytest.mark.parametrize("probe", [probe_lib.Rademacher(), probe_lib.Gaussian()])
def test_hutchinson_is_unbiased_along_a_path(probe):
    data = toys.mixture(VariancePreserving())
    z = jnp.broadcast_to(data.sample(1, 1), (4000, *SHAPE))
    field, solver = data.field(Velocity()), FixedGrid(steps=24)
    exact = density_of(field, z[:1], solver, Exact())
    divergence = Hutchinson(num_probes=1, probe=probe)
    found = density_of(field, z, solver, divergence)
    np.testing.assert_allclose(found.latent[:1], exact.latent, rtol=1e-9)
    toys.assert_mean(found.log_p, float(exact.log_p[0]), at_most=0.1)
    assert np.std(found.log_p) > 0.05


# --- the likelihood of images


LEVELS, TAU, TOY = 3, 0.6, (2, 1, 1)


def toy(schedule):
    """Two pixels of three levels, noise as wide as a bin, and a Gaussian model."""
    return toys.gaussian(schedule, TOY, std_scale=0.6), toys.clean_end(schedule, LEVELS, TAU)


def every_image():
    """All LEVELS^2 images."""
    grid = np.stack(np.meshgrid(*[np.arange(LEVELS)] * 2, indexing="ij"), -1)
    return jnp.asarray(grid.reshape(-1, *TOY))


def exact_log_p(data, end, dequantizer, x):
    """log P(x) of the model, pixel by pixel: the mass of the bin, or of the decoder's share."""
    mean, std = (np.ravel(each) for each in data.pushed(dequantizer.gamma_start(end), NOISY))
    z = np.linspace(-9, 9, 60_001)
    pixels = jnp.asarray(z).reshape(-1, 1, 1, 1)
    scale = toys.latent_scale(dequantizer, end)
    log_p = np.zeros((LEVELS, 2))
    for level in range(LEVELS):
        xs = jnp.full(pixels.shape, level)
        decoder = np.asarray(dequantizer.log_reconstruction(xs, pixels, end))
        for pixel in range(2):
            law = stats.norm(mean[pixel], std[pixel])
            if np.all(decoder == 0):
                edges = scale * (2 * (level + np.asarray([0, 1])) / LEVELS - 1)
                log_p[level, pixel] = math.log(law.cdf(edges[1]) - law.cdf(edges[0]))
            else:
                log_p[level, pixel] = math.log(np.trapezoid(law.pdf(z) * np.exp(decoder), z))
    x = np.asarray(x).reshape(-1, 2)
    return log_p[x[:, 0], 0] + log_p[x[:, 1], 1]


def estimate(estimator, data, end, x, keys):
    """The bound of every image, compiled."""
    field = data.field(Velocity())
    return jax.jit(lambda x, keys: estimator(field, end, NOISY, x, keys))(x, keys)


@pytest.mark.parametrize("num_importance", [1, 2])
@EACH_DEQUANTIZER
@EACH_SCHEDULE
def test_log_weight_of_a_draw(schedule, dequantizer, num_importance):
    """log p + log P(x | z) - log q, with q's mean for a single sample; p in closed form."""
    data, end = toy(schedule)
    x = every_image()
    noise = dequantizer.draw(toys.keys_of(0, 9), TOY, end)
    estimator = ODELikelihood(
        dequantizer=dequantizer, solver=FixedGrid(steps=150), num_importance=num_importance
    )
    field = data.field(Velocity())
    probes = estimator.divergence.draw(toys.keys_of(0, 9), TOY)
    found, _ = jax.jit(lambda x, noise: estimator.log_weight(field, end, NOISY, x, noise, probes))(
        x, noise
    )
    z = dequantizer.start(x, noise, end)
    log_p = log_normal(z, *data.pushed(dequantizer.gamma_start(end), NOISY))
    cost = dequantizer.entropy(2, end) if num_importance == 1 else dequantizer.neg_log_q(noise, end)
    expected = log_p + dequantizer.log_reconstruction(x, z, end) + cost
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.full_cases(r"(StraightPath-Variational|Variance\w*-(Un|Tr)\w*)")
@EACH_DEQUANTIZER
@EACH_SCHEDULE
def test_weights_are_unbiased_for_the_probability_of_each_image(schedule, dequantizer):
    """E exp(log weight) = P(x) exactly for every q, which detects missing constants."""
    data, end = toy(schedule)
    x = jnp.repeat(every_image(), 600, axis=0)
    estimator = ODELikelihood(
        dequantizer=dequantizer,
        solver=FixedGrid(steps=30),
        divergence=Hutchinson(),
        num_importance=3,
        num_repeats=2,
    )
    found = estimate(estimator, data, end, x, toys.keys_of(0, x.shape[0]))
    p = np.exp(np.asarray(found.repeats)).reshape(2, 9, 600)
    expected = np.exp(exact_log_p(data, end, dequantizer, every_image()))
    for image in range(9):
        toys.assert_mean(p[:, image].ravel() / expected[image], 1.0, at_most=0.05)
    toys.assert_mean(p.sum(1).ravel(), expected.sum(), at_most=0.01)


@pytest.mark.full_cases("dequantizer1")
@pytest.mark.parametrize("dequantizer", [TruncatedNormal(), Variational()])
def test_more_importance_samples_are_tighter(dequantizer):
    """The mean rises with K and stays below log P(x), which it approaches."""
    data, end = toy(StraightPath())
    x = jnp.repeat(every_image(), 300, axis=0)
    exact = np.repeat(exact_log_p(data, end, dequantizer, every_image()), 300)
    gaps = []
    for count in (1, 32):
        estimator = ODELikelihood(
            dequantizer=dequantizer,
            solver=FixedGrid(steps=20),
            divergence=Hutchinson(),
            num_importance=count,
        )
        found = estimate(estimator, data, end, x, toys.keys_of(count, x.shape[0]))
        gaps.append(np.mean(exact - np.asarray(found.log_p)))
    assert gaps[0] > 0.02
    assert abs(gaps[1]) < 0.15 * gaps[0]


@dataclasses.dataclass(frozen=True)
class Certain(AbstractDequantizer):
    """A dequantizer without noise: all importance samples are equal."""

    def gamma_start(self, end):
        return end.gamma_min

    def draw(self, keys, shape, end):
        return jnp.zeros((keys.shape[0], *shape))

    def start(self, x, noise, end):
        return end.alpha * end.encoding.encode(x) + noise

    def neg_log_q(self, noise, end):
        return jnp.full(noise.shape[0], 0.7)

    def entropy(self, dims, end):
        return jnp.asarray(0.7)

    def log_reconstruction(self, x, z, end):
        return jnp.zeros(z.shape[0])


def test_equal_weights_do_not_depend_on_their_number():
    """log K is subtracted."""
    data, end = toy(VariancePreserving())
    x, keys = every_image(), toys.keys_of(0, 9)
    single, several = (
        estimate(
            ODELikelihood(
                dequantizer=Certain(),
                solver=FixedGrid(steps=20),
                divergence=Exact(),
                num_importance=count,
            ),
            data,
            end,
            x,
            keys,
        )
        for count in (1, 20)
    )
    np.testing.assert_allclose(several.log_p, single.log_p, rtol=1e-12)


def test_repeats_are_averaged():
    data, end = toy(VariancePreserving())
    x, keys = every_image(), toys.keys_of(0, 9)
    make = dataclasses.replace
    one = ODELikelihood(dequantizer=TruncatedNormal(), solver=FixedGrid(steps=20), num_importance=2)
    found = estimate(make(one, num_repeats=3), data, end, x, keys)
    assert found.repeats.shape == (3, 9)
    np.testing.assert_allclose(found.log_p, np.mean(found.repeats, axis=0), rtol=1e-12)
    assert np.all(np.std(found.repeats, axis=0) > 1e-3)
    first = estimate(one, data, end, x, keys)
    np.testing.assert_allclose(first.log_p, found.repeats[0], rtol=1e-12)
    bits = found.bits_per_dim(2)
    np.testing.assert_allclose(bits, -np.asarray(found.log_p) / (2 * math.log(2)), rtol=1e-12)
    np.testing.assert_array_equal(found.num_evaluations, 20 * 4)


@pytest.mark.full
def test_an_image_has_its_own_figure():
    """Results are identical alone, among other images, or in another order."""
    data, end = toy(StraightPath())
    estimator = ODELikelihood(
        dequantizer=TruncatedNormal(), solver=DormandPrince(), num_importance=2
    )
    x, keys = every_image(), toys.keys_of(0, 9)
    whole = estimate(estimator, data, end, x, keys)
    for order in ([4], [8, 0]):
        places = jnp.asarray(order)
        some = estimate(estimator, data, end, x[places], keys[places])
        np.testing.assert_allclose(some.log_p, whole.log_p[places], rtol=1e-12)
        np.testing.assert_array_equal(some.num_evaluations, whole.num_evaluations[places])


def test_some_solves_fail_and_the_others_keep_their_figures():
    """Each image has its own number of attempts, six evaluations after the first two."""
    data, (_, end) = toys.mixture(StraightPath(), TOY), toy(StraightPath())

    def found(max_steps):
        solver = dataclasses.replace(TIGHT, max_steps=max_steps)
        estimator = ODELikelihood(dequantizer=TruncatedNormal(), solver=solver)
        return estimate(estimator, data, end, every_image(), toys.keys_of(0, 9))

    whole = found(10_000)
    attempts = (np.asarray(whole.num_evaluations) - 2) / 6
    enough = int(np.median(attempts))
    arrives = attempts <= enough
    assert 0 < arrives.sum() < len(arrives), attempts
    some = found(enough)
    np.testing.assert_array_equal(some.success, arrives)
    np.testing.assert_array_equal(some.log_p[arrives], whole.log_p[arrives])


@pytest.mark.parametrize("name", ["num_importance", "num_repeats"])
def test_counts_must_be_positive(name):
    with pytest.raises(ValueError, match=name):
        ODELikelihood(dequantizer=TruncatedNormal(), **{name: 0})
