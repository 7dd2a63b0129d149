"""Laws of every gamma(t)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.schedules.straight_path import StraightPath
from idode_gin.schedules.time import base
from idode_gin.schedules.time.base import AbstractTime
from idode_gin.schedules.time.cosine import Cosine
from idode_gin.schedules.time.learned_linear import LearnedLinear
from idode_gin.schedules.time.linear import Linear, gamma_min_for_levels
from idode_gin.schedules.time.linear_beta import LinearBeta
from idode_gin.schedules.time.monotone import Monotone
from idode_gin.schedules.time.straight import Straight
from idode_gin.schedules.time.tabulated import Tabulated
from idode_gin.schedules.variance_preserving import VariancePreserving

from . import discovery


def moved(time, seed=3):
    """Return the gamma(t) of parameters away from the initial ones, as after some training."""
    params = time.init(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return time.bind(jax.tree.map(lambda each: each + rng.normal(size=each.shape), params))


FAMILIES = discovery.instances(AbstractTime)
LEARNED = [each for each in FAMILIES if isinstance(each, base.AbstractLearnedTime)]
CASES = [
    *(pytest.param((each, False), id=type(each).__name__) for each in FAMILIES),
    *(pytest.param((each, True), id=f"{type(each).__name__}-trained") for each in LEARNED),
]
EACH = pytest.mark.parametrize("time", CASES, indirect=True)
EACH_LEARNED = pytest.mark.parametrize("family", LEARNED, ids=lambda each: type(each).__name__)
pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def time(request, float64):
    family, is_trained = request.param
    return moved(family) if is_trained else family


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

    def rise(width):
        return time.gamma(t + width) - time.gamma(t - width)

    slope = (8 * rise(step) - rise(2 * step)) / (12 * step)  # exact to the fourth order
    np.testing.assert_allclose(time.dgamma(t), slope, rtol=1e-7)


@EACH_LEARNED
def test_parameters_are_those_of_the_ends_and_the_interior(family):
    params = family.init(jax.random.key(0))
    assert set(params["ends"]) == {"gamma_min", "gamma_max"}
    assert bool(params.get("interior")) == family.learns_interior
    pinned = dataclasses.replace(family, learn_ends=False)
    assert "ends" not in pinned.init(jax.random.key(0))
    ends = moved(pinned)
    assert (ends.gamma_min, ends.gamma_max) == (family.gamma_min, family.gamma_max)


@EACH_LEARNED
def test_parameters_that_are_missing_are_named(family):
    with pytest.raises(ValueError, match="needs the parameters time_schedule/ends"):
        family.bind({})


@EACH_LEARNED
def test_a_gamma_is_the_same_input_while_the_ends_move(family):
    gammas = jnp.linspace(-9.0, 4.0, 5)
    np.testing.assert_array_equal(moved(family).rescale(gammas), family.rescale(gammas))


def test_learned_linear_is_linear_between_its_parameters():
    ends = {"gamma_min": jnp.asarray(-4.0), "gamma_max": jnp.asarray(2.0)}
    times = jnp.asarray([0.0, 0.25, 1.0])
    np.testing.assert_allclose(LearnedLinear().bind({"ends": ends}).gamma(times), [-4, -2.5, 2])
    with pytest.raises(ValueError, match="below `gamma_max`"):
        LearnedLinear(gamma_min=2.0, gamma_max=1.0)


def test_monotone_starts_nearly_linear_and_is_its_formula():
    time = Monotone(gamma_min=-5.0, gamma_max=3.0, units=64)
    t = jnp.linspace(0, 1, 101)
    np.testing.assert_allclose(time.gamma(t), -5 + 8 * t, atol=0.08)
    rng = np.random.default_rng(0)
    shapes = jax.tree.map(lambda each: rng.normal(size=each.shape), time.init(jax.random.key(0)))
    interior = shapes["interior"]
    positive = {name: np.log1p(np.exp(interior[name]["kernel"])) for name in ("l1", "l2", "l3")}
    h = positive["l1"] * np.asarray(t) + interior["l1"]["bias"]
    units = 1 / (1 + np.exp(-(positive["l2"] * h[:, None] + interior["l2"]["bias"])))
    g = h + (positive["l3"] * units).mean(1)
    expected = -5 + 8 * (g - g[0]) / (g[-1] - g[0])
    pinned = dataclasses.replace(time, learn_ends=False)
    np.testing.assert_allclose(pinned.bind({"interior": interior}).gamma(t), expected, rtol=1e-10)


def test_tabulated_has_the_density_of_its_table():
    time = Tabulated(gamma_min=-5.0, gamma_max=3.0, bins=4, learn_ends=False)
    masses = jnp.asarray([0.1, 0.4, 0.3, 0.2])
    bound = time.bind({"interior": {"log_masses": jnp.log(masses) + 3}})
    np.testing.assert_allclose(bound.gamma(jnp.asarray([0, 0.1, 0.5, 0.8, 1])), [-5, -3, -1, 1, 3])
    np.testing.assert_allclose(bound.dgamma(jnp.asarray([0.05, 0.2, 0.7, 0.9])), 2 / masses)


def test_tabulated_follows_the_root_of_the_second_moment():
    time = Tabulated(bins=4, floor=1e-9)
    found = time.adapted(
        {"log_masses": jnp.log(jnp.asarray([0.4, 0.3, 0.2, 0.1]))},
        jnp.asarray([8.0, 0.0, 1.0, 4.0]),  # roots of the means: 2, unknown, 1, 1
        jnp.asarray([2.0, 0.0, 1.0, 4.0]),
    )["log_masses"]
    np.testing.assert_allclose(jnp.exp(found), [0.35, 0.3, 0.175, 0.175], atol=1e-8)
    floored = dataclasses.replace(time, floor=0.5).adapted(
        {"log_masses": jnp.zeros(4)}, jnp.asarray([1.0, 0, 0, 0]), jnp.ones(4)
    )["log_masses"]
    np.testing.assert_allclose(jnp.exp(floored), [0.625, 0.125, 0.125, 0.125])
    before = {"log_masses": jnp.asarray([1.0, 2.0, 3.0, 4.0])}
    same = time.adapted(before, jnp.zeros(4), jnp.ones(4))["log_masses"]
    np.testing.assert_array_equal(same, before["log_masses"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_tabulated_keeps_the_mass_of_a_bin_that_is_not_finite(bad):
    """One bad loss is as no sample in its bin; the other bins adapt."""
    time = Tabulated(bins=4)
    before = {"log_masses": jnp.log(jnp.asarray([0.4, 0.3, 0.2, 0.1]))}
    counts = jnp.asarray([2.0, 3.0, 1.0, 4.0])
    found = time.adapted(before, jnp.asarray([8.0, bad, 1.0, 4.0]), counts)
    unknown = time.adapted(before, jnp.asarray([8.0, 0.0, 1.0, 4.0]), counts.at[1].set(0))
    np.testing.assert_array_equal(found["log_masses"], unknown["log_masses"])
    assert not np.allclose(found["log_masses"], before["log_masses"])


def test_fixed_shapes():
    """Cosine has a linear angle, the straight path a linear sigma; the rest is of an integral."""
    t = jnp.linspace(0, 1, 5)
    vp, straight = VariancePreserving(), StraightPath()
    angle = np.arcsin(vp.sigma(Cosine().gamma(t)))
    np.testing.assert_allclose(np.diff(angle, 2), 0, atol=1e-12)
    np.testing.assert_allclose(np.diff(straight.sigma(Straight().gamma(t)), 2), 0, atol=1e-12)
    whole = LinearBeta(gamma_min=-30.0, gamma_max=math.log(math.expm1(10.05)))  # s from 0 to 1
    np.testing.assert_allclose(
        -np.log(vp.alpha(whole.gamma(t)) ** 2), 0.1 * t + 9.95 * t**2, atol=1e-9
    )
    with pytest.raises(ValueError, match="published rates"):
        LinearBeta(beta_0=3.0, beta_1=2.0)


@EACH
def test_rescaled_gamma_is_the_fraction_of_the_initial_range(time):
    time = getattr(time, "family", time)
    middle = (time.gamma_min + time.gamma_max) / 2
    gammas = jnp.asarray([time.gamma_min, middle, time.gamma_max])
    np.testing.assert_allclose(time.rescale(gammas), [0, 0.5, 1], atol=1e-12)


def test_linear_is_linear():
    time = Linear(gamma_min=-4.0, gamma_max=2.0)
    np.testing.assert_allclose(time.gamma(jnp.asarray([0.25, 0.5])), [-2.5, -1.0])
    np.testing.assert_allclose(time.dgamma(jnp.asarray([0.1, 0.9])), 6.0)


@pytest.mark.parametrize("ends", [(2.0, 2.0), (3.0, -1.0)])
def test_the_ends_must_be_in_order(ends):
    with pytest.raises(ValueError, match="below `gamma_max`"):
        Linear(gamma_min=ends[0], gamma_max=ends[1])


@pytest.mark.parametrize("end", [float("nan"), float("inf"), -float("inf"), True])
@pytest.mark.parametrize("name", ["gamma_min", "gamma_max"])
def test_the_ends_must_be_finite_numbers(name, end):
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number"):
        Linear(**{name: end})


@pytest.mark.parametrize("family", [Cosine, Straight])
@pytest.mark.parametrize("gamma_max", [5.0, 16.0, 30.0, 40.0, 80.0])
def test_float32_reaches_both_ends_however_far_they_are(family, gamma_max, float32):
    time = family(gamma_min=-gamma_max, gamma_max=gamma_max)
    t = np.concatenate([np.geomspace(1e-7, 0.5, 40), 1 - np.geomspace(1e-7, 0.5, 40)])
    t = np.unique(np.concatenate([[0, 1], t]).astype(np.float32))
    found = np.asarray(time.gamma(jnp.asarray(t)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[[0, -1]], [-gamma_max, gamma_max], rtol=1e-6)
    assert np.all(np.diff(found) >= 0)
    # Symmetric ends make gamma(t) odd around t = 1/2, where t = 1 - s is exact for these s.
    s = jnp.asarray(2.0 ** -np.arange(1, 20), jnp.float32)
    np.testing.assert_allclose(time.gamma(1 - s), -time.gamma(s), rtol=2e-6, atol=2e-6)
    assert np.all(np.isfinite(jax.vmap(jax.grad(time.gamma))(jnp.asarray(t))))


def test_the_clean_end_follows_the_levels():
    """Half a bin stays at three standard deviations of the noise."""
    for levels in (2, 17, 256):
        tau = np.exp(-gamma_min_for_levels(levels) / 2) / levels
        np.testing.assert_allclose(tau, 3, rtol=1e-12)
    np.testing.assert_allclose(gamma_min_for_levels(256), -13.2875, atol=1e-4)
    with pytest.raises(ValueError, match="2 or more"):
        gamma_min_for_levels(1)
