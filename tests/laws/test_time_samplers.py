"""Laws of every time sampler, with every schedule and parameterization, and of quantiles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from idode_gin.parameterizations.base import AbstractParameterization
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.schedules.time.linear import Linear
from idode_gin.schedules.variance_preserving import VariancePreserving
from idode_gin.time_samplers.base import AbstractTimeSampler
from idode_gin.time_samplers.closed_form_importance import VPVelocityImportance
from idode_gin.time_samplers.discrete_steps import DiscreteSteps
from idode_gin.time_samplers.importance import Importance
from idode_gin.time_samplers.quantiles.base import AbstractQuantiles
from idode_gin.time_samplers.quantiles.low_discrepancy import LowDiscrepancy
from idode_gin.time_samplers.uniform import Uniform

from . import discovery

CONTINUOUS = [
    each for each in discovery.instances(AbstractTimeSampler) if not isinstance(each, DiscreteSteps)
]
EACH = pytest.mark.parametrize("sampler", CONTINUOUS, ids=lambda each: type(each).__name__)
EACH_PARAMETERIZATION = discovery.each("parameterization", AbstractParameterization)
EACH_SCHEDULE = discovery.each("schedule", AbstractSchedule)
EACH_QUANTILES = discovery.each("quantiles", AbstractQuantiles)
TIME = Linear(gamma_min=-11.0, gamma_max=4.0)
U = np.linspace(0.0, 1.0, 42)[:-1]
pytestmark = pytest.mark.usefixtures("float64")


def weight_of(parameterization, schedule):
    return lambda gamma: parameterization.weight(schedule, gamma)


def draw(sampler, schedule, parameterization, u):
    """gamma and density at quantiles u."""
    weight = weight_of(parameterization, schedule)
    return jax.jit(lambda u: sampler.gamma_and_density(u, TIME, weight))(jnp.asarray(u))


def draw_or_refuse(sampler, schedule, parameterization, u):
    """Return `draw`, or None if the sampler does not support this pair."""
    try:
        return draw(sampler, schedule, parameterization, u)
    except ValueError:
        return None


@EACH_PARAMETERIZATION
@EACH_SCHEDULE
@EACH
def test_quantiles_have_the_density(sampler, schedule, parameterization):
    """d gamma / du is one over the density, from end to end."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    edges = np.concatenate([U, [1.0]])
    half = np.diff(edges)[:, None] / 2
    u = edges[:-1, None] + half * (1 + nodes)
    found = draw_or_refuse(sampler, schedule, parameterization, np.concatenate([edges, u.ravel()]))
    if found is None:
        assert isinstance(sampler, VPVelocityImportance)
        return
    gamma, density = (np.asarray(each) for each in found)
    at_edges, inside = gamma[: edges.size], gamma[edges.size :]
    np.testing.assert_allclose(at_edges[[0, -1]], [TIME.gamma_min, TIME.gamma_max], atol=1e-8)
    assert np.all(np.diff(at_edges) > 0)
    assert np.all((TIME.gamma_min <= inside) & (inside <= TIME.gamma_max))
    lengths = np.sum(half * weights / density[edges.size :].reshape(u.shape), axis=1)
    inner = slice(3, -3)  # towards a thin end a density can fall too fast for these nodes
    np.testing.assert_allclose(lengths[inner], np.diff(at_edges)[inner], rtol=1e-7)


@EACH_PARAMETERIZATION
@EACH_SCHEDULE
def test_importance_is_proportional_to_the_weight(schedule, parameterization):
    """F(gamma(u)) = u with F integrated by SciPy, and a^2 / p is constant."""
    compiled = jax.jit(weight_of(parameterization, schedule))

    def weight(gamma):
        return float(compiled(jnp.float64(gamma)))

    pieces = np.linspace(TIME.gamma_min, TIME.gamma_max, 8)
    total = sum(
        integrate.quad(weight, *ends, epsrel=1e-12)[0]
        for ends in zip(pieces[:-1], pieces[1:], strict=True)
    )
    u = np.asarray([0.0, 1e-3, 0.07, 0.3, 0.5, 0.8, 0.97, 0.999])
    gamma, density = draw(Importance(), schedule, parameterization, u)
    below = [integrate.quad(weight, TIME.gamma_min, each, epsrel=1e-12)[0] for each in gamma]
    np.testing.assert_allclose(np.asarray(below) / total, u, atol=1e-9)
    ratio = parameterization.weight(schedule, gamma) / density
    np.testing.assert_allclose(ratio, total, rtol=1e-9)


def test_closed_form_equals_numeric_on_its_own_pair():
    numeric = draw(Importance(), VariancePreserving(), Velocity(), U)
    closed = draw(VPVelocityImportance(), VariancePreserving(), Velocity(), U)
    for expected, found in zip(numeric, closed, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gamma_max", [5.0, 12.0, 15.0, 20.0])
def test_closed_form_stays_within_the_ends_in_float32(gamma_max):
    u = jnp.asarray([0.0, 0.5, 1 - 6e-8, 1.0], jnp.float32)
    time = Linear(gamma_min=-13.3, gamma_max=gamma_max)
    gamma, density = VPVelocityImportance().gamma_and_density(
        u, time, weight_of(Velocity(), VariancePreserving())
    )
    assert (np.asarray(gamma) <= gamma_max + 1e-5).all()
    assert np.isfinite(density).all()
    assert gamma[0] == pytest.approx(-13.3, abs=1e-4)


def test_closed_form_straight_path_distribution():
    """-4 [log(1 + e^{-gamma/2}) + 1 / (1 + e^{-gamma/2})] between its ends, a^2 = 2 alpha^2."""

    def below(gamma):
        power = np.exp(-np.asarray(gamma) / 2)
        return -4 * (np.log1p(power) + 1 / (1 + power))

    gamma, _ = draw(Importance(), StraightPath(), Velocity(), U)
    start, stop = below(TIME.gamma_min), below(TIME.gamma_max)
    np.testing.assert_allclose((below(gamma) - start) / (stop - start), U, atol=1e-10)


@EACH_PARAMETERIZATION
@EACH_SCHEDULE
def test_closed_form_refuses_every_other_pair(schedule, parameterization):
    found = draw_or_refuse(VPVelocityImportance(), schedule, parameterization, U)
    its_own = isinstance(schedule, VariancePreserving) and isinstance(parameterization, Velocity)
    assert (found is not None) == its_own


def test_refusal_works_before_compiling_too():
    weight = weight_of(Velocity(), StraightPath())
    with pytest.raises(ValueError, match="works for every pair"):
        VPVelocityImportance().gamma_and_density(jnp.asarray(U), TIME, weight)


@EACH
def test_float32_stays_close(sampler):
    exact = draw(sampler, VariancePreserving(), Velocity(), U)
    single = draw(sampler, VariancePreserving(), Velocity(), U.astype(np.float32))
    for found, expected in zip(single, exact, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curved(Linear):
    """gamma(t) with the ends of a linear one, and another interior."""

    def gamma(self, t):
        return super().gamma((t + t**2) / 2)


@EACH
def test_a_sampler_says_whether_it_uses_gamma_of_t(sampler):
    weight = weight_of(Velocity(), VariancePreserving())
    curved = Curved(gamma_min=TIME.gamma_min, gamma_max=TIME.gamma_max)
    found = sampler.gamma_and_density(jnp.asarray(U), curved, weight)
    plain = sampler.gamma_and_density(jnp.asarray(U), TIME, weight)
    is_used = any(np.ptp(a - b) > 1e-3 for a, b in zip(found, plain, strict=True))
    assert sampler.uses_gamma_of_t == is_used


def test_discrete_steps_end_at_their_gamma_with_its_weight():
    """A mean over density is the sum over steps of expm1(gamma_t - gamma_s)."""
    steps = 5
    u = (np.arange(20) + 0.5) / 20
    gamma, density = draw(DiscreteSteps(steps=steps), VariancePreserving(), Velocity(), u)
    ends = -11 + 3 * np.arange(1, steps + 1)
    np.testing.assert_allclose(gamma, np.repeat(ends, 4), atol=1e-12)
    np.testing.assert_allclose(np.mean(gamma / density), np.sum(ends * np.expm1(3)), rtol=1e-12)
    with pytest.raises(ValueError, match="`steps` must be an integer"):
        DiscreteSteps(steps=0)


def test_uniform_is_uniform_in_gamma():
    gamma, density = draw(Uniform(), VariancePreserving(), Velocity(), U)
    np.testing.assert_allclose(gamma, -11 + 15 * U, atol=1e-12)
    np.testing.assert_allclose(density, 1 / 15, rtol=1e-12)


@EACH_QUANTILES
def test_each_quantile_is_uniform_by_itself(quantiles):
    keys = jax.random.split(jax.random.key(5), 1000)
    position = jnp.arange(8)
    u = np.asarray(jax.vmap(lambda key: quantiles.draw(key, position, 8))(keys))
    assert np.all((u >= 0) & (u < 1))
    for place in (0, 3, 7):
        assert stats.kstest(u[:, place], "uniform").pvalue > 1e-4


@EACH_QUANTILES
def test_quantiles_do_not_depend_on_the_slicing(quantiles):
    key, position = jax.random.key(2), jnp.arange(12)
    whole = np.asarray(quantiles.draw(key, position, 12))
    assert len(np.unique(whole)) == 12
    for size in (1, 3, 4):
        for start in range(0, 12, size):
            part = quantiles.draw(key, position[start : start + size], 12)
            np.testing.assert_allclose(part, whole[start : start + size], atol=1e-14)
    other = quantiles.draw(jax.random.key(3), position, 12)
    assert not np.allclose(other, whole)


def test_low_discrepancy_puts_one_quantile_in_every_stratum():
    for seed in range(5):
        u = LowDiscrepancy().draw(jax.random.key(seed), jnp.arange(64), 64)
        np.testing.assert_array_equal(np.sort(np.floor(np.asarray(u) * 64)), np.arange(64))


def test_a_single_panel_is_enough_for_a_constant_weight():
    u, time = jnp.linspace(0.0, 0.99, 12), Linear()
    gamma, density = Importance(panels=1).gamma_and_density(u, time, jnp.ones_like)
    span = time.gamma_max - time.gamma_min
    np.testing.assert_allclose(gamma, time.gamma_min + span * u, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(density, 1 / span, rtol=1e-5)
