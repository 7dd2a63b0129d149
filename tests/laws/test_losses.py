"""Laws of every training loss, on every schedule and parameterization."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin import numerics, ode
from idode_gin.losses.base import AbstractLoss, LossDraws
from idode_gin.losses.first_order import FirstOrder
from idode_gin.losses.second_order import SecondOrder
from idode_gin.losses.unweighted import Unweighted
from idode_gin.networks.unet import UNet
from idode_gin.parameterizations.base import AbstractParameterization
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.schedules.time.linear import Linear
from idode_gin.schedules.variance_preserving import VariancePreserving
from idode_gin.time_samplers.base import AbstractTimeSampler
from idode_gin.time_samplers.closed_form_importance import VPVelocityImportance

from . import discovery, toys

EACH = discovery.each("loss", AbstractLoss)
EACH_SAMPLER = discovery.each("sampler", AbstractTimeSampler)
EACH_PARAMETERIZATION = discovery.each("parameterization", AbstractParameterization)
EACH_SCHEDULE = discovery.each("schedule", AbstractSchedule)
SHAPE, DIMS = (2, 2, 1), 4
TIME = Linear(gamma_min=-3.0, gamma_max=2.0)
pytestmark = pytest.mark.usefixtures("float64")


def gauss_legendre(fn):
    """Integral over the range of TIME."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    half = (TIME.gamma_max - TIME.gamma_min) / 2
    return half * np.sum(weights * np.asarray(fn(jnp.asarray(TIME.gamma_min + half * (1 + nodes)))))


@pytest.mark.full_cases(r"\w+-(Variance\w*-[DNS]|StraightPath-[DSV])\w*")
@EACH_PARAMETERIZATION
@EACH_SCHEDULE
@EACH_SAMPLER
def test_first_order_is_unbiased(sampler, schedule, parameterization):
    """For a network that is off by c: 1/2 integral of sum(alpha^2 s^2 / v) + a^2 d c^2."""
    off, count = 0.5, 8_000
    data = toys.gaussian(schedule)
    best = data.field(parameterization)
    field = ode.Field(
        schedule=schedule,
        parameterization=parameterization,
        network=lambda z, gamma: best.network(z, gamma) + off,
    )

    def weight(gamma):
        return parameterization.weight(schedule, gamma)

    def losses(f):
        u = sampler.quantiles.draw(jax.random.key(0), jnp.arange(count), count)
        gamma, density = sampler.gamma_and_density(u, TIME, weight)
        draws = FirstOrder().draw(toys.keys_of(1, count), SHAPE)
        return FirstOrder()(field, f, gamma, density, draws)

    try:
        found = jax.jit(losses)(data.sample(0, count))
    except ValueError:
        assert isinstance(sampler, VPVelocityImportance)
        return

    def integrand(gamma):
        alpha = schedule.alpha(gamma)[:, None, None, None]
        optimal = (alpha * data.std) ** 2 / data.variance(gamma)
        return 0.5 * (jnp.sum(optimal, axis=(1, 2, 3)) + weight(gamma) * DIMS * off**2)

    expected = gauss_legendre(integrand)
    toys.assert_mean(found.diffusion, expected, at_most=0.04 * expected)
    np.testing.assert_array_equal(found.second_order, 0)


def tiny_problem(schedule, batch=3):
    """A random network, and the other arguments of a loss."""
    network = toys.TinyNetwork(scale=0.5)
    params = network.init(jax.random.key(3), SHAPE)
    f, noise = jax.random.normal(jax.random.key(4), (2, batch, *SHAPE))
    gamma, density = jnp.asarray([-2.5, 0.3, 1.2]), jnp.asarray([0.1, 0.3, 0.2])

    def field(params):
        def bound(z, gamma):
            conditioning = jnp.ones((z.shape[0], 1))
            return network(params, z, TIME.rescale(gamma), conditioning)

        return ode.Field(schedule=schedule, parameterization=Velocity(), network=bound)

    return params, field, f, gamma, density, noise


def test_unweighted_has_the_value_of_the_bound_and_the_gradient_of_the_plain_error():
    params, field, f, gamma, density, noise = tiny_problem(StraightPath())
    draws = LossDraws(noise=noise, probes=jnp.zeros((0, *f.shape)))

    def of(loss):
        return lambda params: jnp.sum(loss(field(params), f, gamma, density, draws).diffusion)

    def plain(params):
        z = ode.noised(StraightPath(), f, gamma, noise)
        error = (noise - f) / 2**0.5 - field(params).output(z, gamma)
        return 0.5 * jnp.sum(error**2)

    np.testing.assert_allclose(of(Unweighted())(params), of(FirstOrder())(params), rtol=1e-12)
    found, expected = (jax.jit(jax.grad(each))(params) for each in (of(Unweighted()), plain))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9), found, expected)


# a, b, F* and the second-order residual of velocity prediction as the paper writes them.
PAPER = {
    VariancePreserving: (
        lambda gamma: (jax.nn.sigmoid(-gamma) ** 0.5, jax.nn.sigmoid(gamma) ** 0.5),
        lambda a, s, f, e: a * e - s * f,
        lambda a, s, trace, error: s * trace - a * (DIMS - error),
        lambda a: a**2,
    ),
    StraightPath: (
        lambda gamma: (jax.nn.sigmoid(-gamma / 2), jax.nn.sigmoid(gamma / 2)),
        lambda a, s, f, e: (e - f) / 2**0.5,
        lambda a, s, trace, error: s * trace - DIMS / 2**0.5 + 2**0.5 * a * error,
        lambda a: 2 * a**2,
    ),
}


@pytest.mark.parametrize("kind", PAPER, ids=lambda kind: kind.__name__)
def test_second_order_equals_the_paper_with_its_gradient(kind):
    """Value and parameter gradient against reverse-mode Jacobians and the paper's own formulas."""
    amplitudes, target, residual, weight = PAPER[kind]
    params, field, f, gamma, density, noise = tiny_problem(kind())
    probes = jax.random.rademacher(jax.random.key(9), (2, *f.shape), dtype=f.dtype)
    strength = 0.3

    def paper(params):
        network = field(params).network
        a, s = amplitudes(gamma)
        a4, s4 = (numerics.expand(each, f) for each in (a, s))
        z = a4 * f + s4 * noise
        error = jnp.sum((network(z, gamma) - target(a4, s4, f, noise)) ** 2, axis=(1, 2, 3))
        jacobian = jax.jacrev(lambda z: network(z, gamma))(z).reshape(3, DIMS, 3, DIMS)
        flat = probes.reshape(2, 3, DIMS)
        trace = jnp.einsum("nbi,bibj,nbj->b", flat, jacobian, flat) / 2
        r = residual(a, s, trace, jax.lax.stop_gradient(error))
        first = weight(a) / (2 * density)
        return first * error, strength * first * r**2 / DIMS

    def ours(params):
        loss = SecondOrder(strength=strength, num_probes=2)
        return loss(field(params), f, gamma, density, LossDraws(noise=noise, probes=probes))

    found, expected = ours(params), paper(params)
    np.testing.assert_allclose(found.diffusion, expected[0], rtol=1e-10)
    np.testing.assert_allclose(found.second_order, expected[1], rtol=1e-10)
    gradients = [
        jax.jit(jax.grad(lambda params, fn=fn: sum(jnp.sum(each) for each in fn(params))))(params)
        for fn in (ours, paper)
    ]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10), *gradients)


def second_order_at(field, f, gamma, noise, strength):
    """The term with the exact trace: the mean over all signs."""
    signs = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=DIMS))).reshape(-1, 1, *SHAPE)
    probes = jnp.broadcast_to(signs, (signs.shape[0], *f.shape))
    draws = LossDraws(noise=noise, probes=probes)
    loss = SecondOrder(strength=strength)

    def term(f, gamma, draws):
        return loss(field, f, gamma, jnp.ones_like(gamma), draws).second_order

    return jax.jit(term)(f, gamma, draws)


@pytest.fixture(params=["gaussian", "mixture"])
def solvable(request):
    """Data whose optimal network is known: `schedule -> data`."""
    return {"gaussian": toys.gaussian, "mixture": toys.mixture}[request.param]


def posterior_noise(data, z, gamma):
    """E[eps | z], and the trace of Cov[eps | z]."""
    schedule = data.schedule
    alpha, sigma = schedule.alpha(gamma), schedule.sigma(gamma)
    if isinstance(data, toys.Mixture):
        spread = (alpha / sigma) ** 2 * data.posterior(z, gamma)[1]
    else:
        optimal = (numerics.expand(alpha, z) * data.std) ** 2 / data.variance(gamma)
        spread = jnp.sum(optimal, axis=(1, 2, 3))
    return data.noise_hat(z, gamma), spread


@pytest.mark.full_cases(r"\w+-(Variance\w*-[DNS]|Straight\w*-[DSV])\w*")
@EACH_PARAMETERIZATION
@EACH_SCHEDULE
def test_second_order_residual_at_the_optimum(solvable, schedule, parameterization):
    """The optimal r = (|eps - eps_hat|^2 - tr Cov[eps | z]) / a has mean zero given z."""
    data, strength = solvable(schedule), 0.1
    f = data.sample(1, 6)
    gamma = jnp.linspace(-3.0, 2.0, 6)
    noise = jax.random.normal(jax.random.key(2), f.shape)
    z = ode.noised(schedule, f, gamma, noise)
    noise_hat, spread = posterior_noise(data, z, gamma)
    error = jnp.sum((noise - noise_hat) ** 2, axis=(1, 2, 3))
    field = data.field(parameterization)
    # weight r^2 / d with weight = a^2 / 2 and r = (...) / a
    expected = strength / 2 * (error - spread) ** 2 / DIMS
    found = second_order_at(field, f, gamma, noise, strength)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert np.min(np.asarray(expected)) > 1e-6

    # The same z with as much error as expected, in any direction: no residual is left.
    direction = jax.random.normal(jax.random.key(5), f.shape)
    length = jnp.sqrt(jnp.sum(direction**2, axis=(1, 2, 3)))
    noise = noise_hat + direction * numerics.expand(jnp.sqrt(spread) / length, z)
    alpha, sigma = (numerics.expand(fn(gamma), z) for fn in (schedule.alpha, schedule.sigma))
    f = (z - sigma * noise) / alpha
    at_optimum = second_order_at(field, f, gamma, noise, strength)
    np.testing.assert_allclose(at_optimum, 0, atol=1e-12)

    def worse(z, gamma):
        return field.network(z, gamma) + 0.2 * jnp.sin(z)

    away = ode.Field(schedule=schedule, parameterization=parameterization, network=worse)
    assert np.all(np.asarray(second_order_at(away, f, gamma, noise, strength)) > 1e-6)


def test_the_expected_error_of_the_toys_is_the_trace():
    """E |eps - eps_hat|^2 = E tr Cov[eps | z], which the previous test uses."""
    for make in (toys.gaussian, toys.mixture):
        data = make(VariancePreserving())
        f = data.sample(0, 40_000)
        gamma = jnp.full(f.shape[:1], -1.0)
        noise = jax.random.normal(jax.random.key(0), f.shape)
        z = ode.noised(data.schedule, f, gamma, noise)
        noise_hat, spread = posterior_noise(data, z, gamma)
        error = jnp.sum((noise - noise_hat) ** 2, axis=(1, 2, 3))
        toys.assert_mean(error - spread, 0.0, at_most=0.02)


@EACH
@EACH_SCHEDULE
def test_every_loss_contains_the_first_order_term(loss, schedule):
    params, field, f, gamma, density, noise = tiny_problem(schedule)
    draws = loss.draw(toys.keys_of(0, 3), SHAPE)._replace(noise=noise)
    found = loss(field(params), f, gamma, density, draws)
    z = ode.noised(schedule, f, gamma, noise)
    noise_hat = field(params).noise_hat(z, gamma)
    expected = 0.5 * jnp.sum((noise - noise_hat) ** 2, axis=(1, 2, 3)) / density
    np.testing.assert_allclose(found.diffusion, expected, rtol=1e-9)
    assert np.all(np.asarray(found.second_order) >= 0)


@EACH
def test_draws_and_terms_depend_on_their_own_image(loss):
    params, field, f, gamma, density, _ = tiny_problem(StraightPath())
    keys = toys.keys_of(0, 3)
    whole = loss(field(params), f, gamma, density, loss.draw(keys, SHAPE))
    order = jnp.asarray([2, 0])
    draws = loss.draw(keys[order], SHAPE)
    some = loss(field(params), f[order], gamma[order], density[order], draws)
    for found, expected in zip(some, whole, strict=True):
        np.testing.assert_allclose(found, expected[order], rtol=1e-12)


def test_the_network_is_worked_out_once_for_value_and_trace(float32):
    """Floating-point operations of the gradient: each probe adds one pass to the one of the value.

    Reverse mode for the trace, or a second evaluation of the network, would cost half a step more.
    """
    network, shape = UNet(channels=16, levels=0, groups=4), (8, 8, 3)
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), shape))
    f, each = jnp.zeros((2, *shape)), jnp.ones(2)

    def cost(loss):
        def total(params):
            field = ode.Field(
                schedule=StraightPath(),
                parameterization=Velocity(),
                network=lambda z, gamma: network(params, z, gamma, jnp.zeros((2, 1))),
            )
            terms = loss(field, f, each, each, loss.draw(toys.keys_of(0, 2), shape))
            return jnp.sum(terms.diffusion + terms.second_order)

        return jax.jit(jax.grad(total)).lower(params).cost_analysis()["flops"]

    first = cost(FirstOrder())
    assert cost(SecondOrder()) <= 2.2 * first
    assert cost(SecondOrder(num_probes=2)) <= 3.3 * first


def test_more_strength_is_more_of_the_same():
    params, field, f, gamma, density, _ = tiny_problem(StraightPath())
    draws = SecondOrder().draw(toys.keys_of(0, 3), SHAPE)
    one, two = (
        SecondOrder(strength=strength)(field(params), f, gamma, density, draws)
        for strength in (0.1, 0.2)
    )
    np.testing.assert_allclose(two.second_order, 2 * one.second_order, rtol=1e-12)
    assert SecondOrder().strength == 0.1


@pytest.mark.parametrize(
    "make", [lambda: SecondOrder(strength=0), lambda: SecondOrder(num_probes=0)]
)
def test_arguments_must_be_positive(make):
    with pytest.raises(ValueError, match="greater than zero"):
        make()
