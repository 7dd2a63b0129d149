"""Laws of every variational bound: exact values where the optimal network is known."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.encoding import Encoding
from idode_gin.losses import base
from idode_gin.losses.bound import VariationalBound, integrand
from idode_gin.losses.first_order import FirstOrder
from idode_gin.parameterizations.base import AbstractParameterization
from idode_gin.parameterizations.noise import Noise
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.time.base import AbstractLearnedTime, AbstractTime
from idode_gin.schedules.time.linear import Linear
from idode_gin.schedules.time.linear_beta import LinearBeta
from idode_gin.schedules.variance_preserving import VariancePreserving
from idode_gin.time_samplers.base import AbstractTimeSampler
from idode_gin.time_samplers.discrete_steps import DiscreteSteps
from idode_gin.time_samplers.importance import Importance
from idode_gin.time_samplers.uniform import Uniform
from idode_gin.time_samplers.uniform_in_gamma import UniformInGamma, for_bound

from . import discovery, toys

EACH = discovery.each("bound", base.AbstractBound)
EACH_SCHEDULE = discovery.each("schedule", AbstractSchedule)
EACH_PARAMETERIZATION = discovery.each("parameterization", AbstractParameterization)
EACH_SAMPLER = discovery.each("sampler", AbstractTimeSampler)
EACH_TIME = discovery.each("time", AbstractTime)
LEVELS = 4
TAU = 1.2
GAMMA_MAX = 2.0
COUNT = 8_000
pytestmark = pytest.mark.usefixtures("float64")


def problem(schedule, parameterization=None, off=0.0, time=None):
    """One pixel with equally likely levels, and a prediction `off` from the optimum."""
    end = toys.clean_end(schedule, LEVELS, TAU)
    data = toys.UniformLevels(end.encoding, schedule)
    field = toys.field_of(
        schedule, parameterization or Noise(), lambda z, gamma: data.noise_hat(z, gamma) + off
    )
    return end, time or Linear(gamma_min=end.gamma_min, gamma_max=GAMMA_MAX), data, field


def run(bound, schedule, parameterization=None, off=0.0, time=None):
    """Return the terms of COUNT images, with equally many of every level."""
    end, time, _, field = problem(schedule, parameterization, off, time)
    x = jnp.arange(COUNT).reshape(-1, 1, 1, 1) % LEVELS
    return jax.jit(lambda x, keys: bound(field, end, time, x, keys))(x, toys.keys_of(0, COUNT))


def exact_total(schedule):
    """log V + KL(marginal at gamma_max | N(0, 1)): the optimal bound, nats per pixel."""
    gamma = jnp.asarray(GAMMA_MAX)
    alpha, sigma = float(schedule.alpha(gamma)), float(schedule.sigma(gamma))
    centres = alpha * (2 * np.arange(LEVELS) + 1 - LEVELS) / LEVELS
    z = np.linspace(-12, 12, 40_001)
    normal = np.exp(-0.5 * ((z[:, None] - centres) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    density = normal.mean(1)
    log_prior = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    ratio = np.where(density > 0, np.log(np.maximum(density, 1e-300)) - log_prior, 0)
    return math.log(LEVELS) + np.trapezoid(density * ratio, z)


@pytest.mark.full_cases(r"(Variance\w*-[DNS]|StraightPath-[DSV])\w*")
@EACH_PARAMETERIZATION
@EACH_SCHEDULE
def test_continuous_bound_is_tight_at_the_optimum(schedule, parameterization):
    """For equally likely levels the decoder is exact, and the gap is the mismatch of the prior."""
    terms = run(VariationalBound(num_times=8), schedule, parameterization)
    toys.assert_mean(terms.total, exact_total(schedule), at_most=0.015)


@EACH_SCHEDULE
def test_continuous_bound_rises_by_the_square_of_the_error(schedule):
    """An error of c in every noise prediction costs c^2 / 2 per nat of gamma."""
    off = 0.4
    terms = run(VariationalBound(num_times=8), schedule, off=off)
    end = toys.clean_end(schedule, LEVELS, TAU)
    more = off**2 / 2 * (GAMMA_MAX - end.gamma_min)
    assert more > 0.3
    toys.assert_mean(terms.total, exact_total(schedule) + more, at_most=0.015)


@EACH_SAMPLER
def test_the_time_sampler_does_not_change_the_mean(sampler):
    bound = VariationalBound(num_times=4, time_sampler=sampler)
    terms = run(bound, VariancePreserving(), Velocity())
    toys.assert_mean(terms.total, exact_total(VariancePreserving()), at_most=0.015)


@EACH_TIME
def test_a_bound_is_not_estimated_at_the_times_of_a_fixed_gamma(time):
    """Uniform in gamma instead; what is suited to the bound already is kept, and so is a chain."""
    for kept in (Importance(), DiscreteSteps(steps=3), UniformInGamma()):
        assert for_bound(kept, time) is kept
    found, u = for_bound(Uniform(), time), jnp.linspace(0, 1, 9)
    if time.learns_interior:
        assert isinstance(found, Uniform)
        return
    gamma, density = found.gamma_and_density(u, time, jnp.ones_like)
    span = float(time.gamma_max) - float(time.gamma_min)
    np.testing.assert_allclose(gamma, float(time.gamma_min) + span * u, rtol=1e-5)
    np.testing.assert_allclose(density, 1 / span, rtol=1e-5)


def test_the_error_of_a_bound_in_training_does_not_depend_on_a_fixed_gamma():
    """At the ends of 8-bit images, whose clean third is 0.3 % of the time of DDPM."""
    x = jnp.arange(2_000).reshape(-1, 1, 1, 1) % 256
    batch = {"image": x, "conditioning": jnp.zeros((2_000, 1)), "index": jnp.arange(2_000)}
    data = toys.UniformLevels(Encoding(levels=256), VariancePreserving())
    field = toys.field_of(VariancePreserving(), Noise(), data.noise_hat)
    linear = toys.optimal_model(field, Linear(), levels=256)
    found = [
        model.eval_fn({}, batch, jax.random.key(0))["bpd"]
        for model in (linear, dataclasses.replace(linear, time=LinearBeta()))
    ]
    np.testing.assert_allclose(*found, rtol=1e-5)


@EACH_TIME
def test_the_interior_of_gamma_does_not_change_the_mean(time):
    """Every gamma(t) between the same ends, after some training, gives the exact bound."""
    gamma_min = toys.clean_end(VariancePreserving(), LEVELS, TAU).gamma_min
    time = dataclasses.replace(time, gamma_min=gamma_min, gamma_max=GAMMA_MAX)
    if isinstance(time, AbstractLearnedTime):
        params = dataclasses.replace(time, learn_ends=False).init(jax.random.key(0))
        move = np.random.default_rng(0).normal
        params = jax.tree.map(lambda each: each + 0.5 * move(size=each.shape), params)
        time = dataclasses.replace(time, learn_ends=False).bind(params)
    terms = run(VariationalBound(num_times=8), VariancePreserving(), Velocity(), time=time)
    toys.assert_mean(terms.total, exact_total(VariancePreserving()), at_most=0.015)


@pytest.mark.full_cases("(1|16)")
@pytest.mark.parametrize("num_times", [1, 3, 16])
def test_the_number_of_times_does_not_change_the_mean(num_times):
    bound = VariationalBound(num_times=num_times, time_sampler=Importance())
    terms = run(bound, VariancePreserving())
    toys.assert_mean(terms.total, exact_total(VariancePreserving()), at_most=0.03)


def chain(steps, num_times):
    """The bound of a chain of `steps`, at so many of them."""
    return VariationalBound(num_times=num_times, time_sampler=DiscreteSteps(steps=steps))


@pytest.mark.full_cases("(2-2|8-8|64-8)")
@pytest.mark.parametrize(("steps", "num_times"), [(2, 2), (8, 8), (8, 3), (64, 8)])
def test_discrete_time_equals_its_sum(steps, num_times):
    """Half the sum of expm1(gamma_t - gamma_s) E |eps - eps_hat|^2, by quadrature."""
    terms = run(chain(steps, num_times), VariancePreserving())
    toys.assert_mean(terms.diffusion, discrete_diffusion(steps), at_most=0.04)


@EACH_PARAMETERIZATION
def test_the_loss_of_a_chain_is_its_bound(parameterization):
    """The first-order loss at steps of a chain, for every meaning of the output."""
    steps, schedule = 8, VariancePreserving()
    end, time, _, field = problem(schedule, parameterization)
    x = jnp.arange(COUNT).reshape(-1, 1, 1, 1) % LEVELS
    sampler = DiscreteSteps(steps=steps)

    @jax.jit
    def losses(x, keys):
        u = sampler.quantiles.draw(jax.random.key(0), jnp.arange(COUNT), COUNT)
        gamma, density = sampler.gamma_and_density(u, time, lambda gamma: gamma)
        draws = FirstOrder().draw(keys, x.shape[1:])
        return FirstOrder()(field, end.encoding.encode(x), gamma, density, draws).diffusion

    toys.assert_mean(losses(x, toys.keys_of(0, COUNT)), discrete_diffusion(steps), at_most=0.05)


def discrete_diffusion(steps):
    _, time, data, _ = problem(VariancePreserving())
    step = (time.gamma_max - time.gamma_min) / steps
    gammas = time.gamma_min + step * np.arange(1, steps + 1)
    return 0.5 * math.expm1(step) * sum(data.mean_square_error(gamma) for gamma in gammas)


def test_discrete_time_falls_towards_the_continuous_bound():
    continuous = float(np.mean(run(VariationalBound(), VariancePreserving()).diffusion))
    values = [np.mean(run(chain(steps, steps), VariancePreserving()).diffusion) for steps in (2, 6)]
    assert values[0] > values[1] > continuous
    sums = [discrete_diffusion(steps) for steps in (6, 32, 256)]
    assert sums[0] > sums[1] > sums[2] > continuous - 0.03
    assert sums[2] == pytest.approx(continuous, abs=0.04)


@EACH
@EACH_SCHEDULE
def test_terms_shared_by_every_bound(bound, schedule):
    """Prior: KL of two normals. Reconstruction: the conditional entropy of the level."""
    terms = run(bound, schedule)
    gamma = jnp.asarray(GAMMA_MAX)
    alpha, sigma = float(schedule.alpha(gamma)), float(schedule.sigma(gamma))
    f = (2 * (np.arange(COUNT) % LEVELS) + 1 - LEVELS) / LEVELS
    prior = -np.log(sigma) + (sigma**2 + (alpha * f) ** 2 - 1) / 2
    np.testing.assert_allclose(terms.prior, prior, rtol=1e-10)
    end = toys.clean_end(schedule, LEVELS, TAU)
    toys.assert_mean(terms.reconstruction, entropy_of_level(end.gamma_min), at_most=0.015)
    np.testing.assert_allclose(
        terms.total, terms.prior + terms.reconstruction + terms.diffusion, rtol=1e-12
    )


def entropy_of_level(gamma):
    """H(x | z / alpha) for equally likely levels, by quadrature over the noise."""
    nodes, weights = toys.normal_quadrature()
    centres = (2 * np.arange(LEVELS) + 1 - LEVELS) / LEVELS
    y = centres[:, None] + math.exp(gamma / 2) * nodes
    logits = -0.5 * ((y[..., None] - centres) * math.exp(-gamma / 2)) ** 2
    shares = np.exp(logits) / np.sum(np.exp(logits), -1, keepdims=True)
    own = shares[np.arange(LEVELS), :, np.arange(LEVELS)]
    return float(np.mean(-np.log(own) @ weights))


@EACH
def test_an_image_has_its_own_figure(bound):
    """Results do not depend on batch size, order or neighbours."""
    end, time, _, field = problem(VariancePreserving())
    x = jnp.asarray([0, 3, 1, 2, 2]).reshape(5, 1, 1, 1)
    keys = toys.keys_of(1, 5)
    compiled = jax.jit(lambda x, keys: bound(field, end, time, x, keys))
    whole = compiled(x, keys)
    order = jnp.asarray([4, 1])
    some = compiled(x[order], keys[order])
    for found, expected in zip(some, whole, strict=True):
        np.testing.assert_allclose(found, expected[order], rtol=1e-12)
    assert not np.isclose(whole.diffusion[3], whole.diffusion[4])


@EACH
def test_evaluations_are_counted(bound):
    calls = []
    end, time, _, field = problem(VariancePreserving())

    def counted(z, gamma):
        jax.debug.callback(lambda: calls.append(1))
        return field.network(z, gamma)

    tapped = toys.field_of(VariancePreserving(), Noise(), counted)
    x = jnp.zeros((1, 1, 1, 1), jnp.int32)
    compiled = jax.jit(lambda x, keys: bound(tapped, end, time, x, keys))
    jax.block_until_ready(compiled(x, toys.keys_of(0, 1)))
    jax.effects_barrier()
    assert len(calls) == bound.num_evaluations()


@EACH_SCHEDULE
def test_integrand_at_the_optimum_of_gaussian_data(schedule):
    """sum(alpha^2 s^2 / v) / 2, whose integral is log(1 + s^2 e^-gamma) / 2 between its ends."""
    data, count = toys.gaussian(schedule), 20_000
    f = data.sample(3, count)
    noise = jax.random.normal(jax.random.key(0), f.shape)
    for level in (-4.0, 0.5):
        gamma = jnp.full(count, level)
        found = integrand(data.field(Velocity()), f, gamma, noise)
        step = 1e-4
        ends = [0.5 * np.sum(np.log1p(data.std**2 * np.exp(-(level + d)))) for d in (-step, step)]
        toys.assert_mean(found, (ends[0] - ends[1]) / (2 * step), at_most=0.02)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VariationalBound(num_times=0),
        lambda: chain(0, 1),
    ],
)
def test_arguments_must_make_sense(make):
    with pytest.raises(ValueError, match="must be"):
        make()
