"""gamma(t) trained on a loss whose profile over gamma is known, against the analytic optimum."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from idode_gin.losses import base as losses
from idode_gin.networks.base import AbstractNetwork
from idode_gin.schedules.time.monotone import Monotone
from idode_gin.schedules.time.tabulated import Tabulated
from idode_gin.training import train_state, train_step
from idode_gin.training.guards import STOP, Guards, Skip

LOW, HIGH, BATCH = -6.0, 4.0, 512
BITS = np.log(2) * np.prod(tiny.SHAPE)


@dataclasses.dataclass(frozen=True)
class Nothing(AbstractNetwork):
    def init(self, key, image_shape):
        return {"unused": jnp.zeros(1)}

    def __call__(self, params, z, time, conditioning, key=None):
        return jnp.zeros_like(z)


@dataclasses.dataclass(frozen=True)
class Profile(losses.AbstractLoss):
    """h(gamma) n^2 / p(gamma) bits per dim, n standard normal: E L = h and E L^2 = 3 h^2."""

    def draw(self, keys, shape):
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        return losses.LossDraws(noise=noise, probes=jnp.zeros((0, *noise.shape)))

    def __call__(self, field, f, gamma, density, draws):
        found = h(gamma) * draws.noise[:, 0, 0, 0] ** 2 / density * BITS
        return losses.LossTerms(diffusion=found, second_order=jnp.zeros_like(found))


def h(gamma):
    return 0.1 + jnp.exp(-((gamma + 2) ** 2) / 8)


def second_moment(model, params):
    """E L^2 by quadrature over t."""
    t = (jnp.arange(4000) + 0.5) / 4000
    time = model.at(params).time
    return float(jnp.mean(3 * (h(time.gamma(t)) * time.dgamma(t)) ** 2))


def batch_of(size, factor=1.0):
    """A batch whose loss is multiplied by `factor`."""
    return {
        "factor": jnp.full(size, factor),
        "image": jnp.zeros((size, *tiny.SHAPE), jnp.uint8),
        "conditioning": jnp.zeros((size, 1)),
        "position": jnp.arange(size),
    }


def prepared(time, rate, size=BATCH, log_period=30, rules=STOP):
    """A model without parameters but those of gamma(t), its first state, and the update."""
    time = dataclasses.replace(time, gamma_min=LOW, gamma_max=HIGH, learn_ends=False)
    model = tiny.model(network=Nothing(), loss=Profile(), time=time)
    key, optimizer = jax.random.key(0), optax.adam(rate)
    params = model.init(key, tiny.SHAPE)
    names = train_step.metric_names(model.loss_fn, params, batch_of(size), key)
    bins = time.adaptation.bins if time.adaptation else 0
    state = train_state.create(params, optimizer, names, adapted_bins=bins)
    config = train_step.UpdateConfig(
        ema_rate=0.5, log_period=log_period, adaptation=time.adaptation, rules=rules
    )

    def loss_fn(params, batch, key, size):
        loss, parts = model.loss_fn(params, batch, key, size)
        return loss * batch["factor"][0], parts

    return model, state, jax.jit(train_step.make_train_step(loss_fn, optimizer, key, config))


@pytest.mark.parametrize("log_period", [3, 9])
def test_sums_of_bins_start_again_with_each_adaptation(log_period):
    """Those of the metrics with each row; a batch adds one to the shares of all bins together."""
    period = 4
    _, state, step = prepared(Tabulated(bins=5, adapt_period=period), 0.0, 6, log_period)
    for number in range(2 * period + 1):
        state, _ = step(state, batch_of(6))
        shares = float(jnp.sum(state.window[train_state.SAMPLES]))
        assert shares == pytest.approx(number % period + 1)
        assert int(state.window[train_state.COUNT]) == number % log_period + 1


def test_a_skipped_step_adapts_nothing():
    """It changes no parameter, though an adaptation is due after it; the next one is made."""
    rules = Guards(non_finite=Skip())
    _, first, step = prepared(Tabulated(bins=5, adapt_period=2), 0.0, 6, rules=rules)
    good, bad = batch_of(6), batch_of(6, np.nan)
    states = [first]
    for batch in (good, bad, good, good):
        states.append(step(states[-1], batch)[0])
    masses = [np.asarray(each.params["time_schedule"]["interior"]["log_masses"]) for each in states]
    assert [bool(np.any(each)) for each in masses] == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("time", "rate", "steps", "within"),
    [
        (Tabulated(bins=32, adapt_period=40, floor=0.01), 0.0, 40, 0.02),
        (Monotone(units=32), optax.cosine_decay_schedule(0.1, 800), 800, 0.05),
    ],
    ids=["Tabulated", "Monotone"],
)
def test_the_variance_falls_to_the_analytic_value(time, rate, steps, within):
    """The least second moment is 3 (integral of h)^2, at a density proportional to h."""
    model, state, step = prepared(time, rate)
    batch = batch_of(BATCH)
    before = second_moment(model, state.params)
    for number in range(steps):
        if number == steps - 1 and time.adaptation:
            unchanged = state.params["time_schedule"]["interior"]["log_masses"]
            np.testing.assert_array_equal(unchanged, 0)
        state, _ = step(state, batch)
    if time.adaptation:  # whatever the rows of the log, which are of 30 steps
        assert float(jnp.sum(state.window[train_state.SAMPLES])) == pytest.approx(steps)
    gammas = jnp.linspace(LOW, HIGH, 2001)
    integral = float(jnp.trapezoid(h(gammas), gammas))
    after, least = second_moment(model, state.params), 3 * integral**2
    assert before > 1.25 * least
    assert least * (1 - 1e-3) < after < least * (1 + within)
    curve = model.at(state.params).time
    inner = jnp.linspace(LOW + 0.1, HIGH - 0.1, 41)
    grid = jnp.linspace(0, 1, 4001)
    density = 1 / curve.dgamma(jnp.interp(inner, curve.gamma(grid), grid))
    np.testing.assert_allclose(density, h(inner) / integral, rtol=0.1, atol=0.03)
    # The mean of the loss is still the integral.
    many = model.loss_fn(state.params, batch, jax.random.key(1))[1]["diffusion"]
    assert abs(float(many.mean()) - integral) < 5 * float(many.std()) / np.sqrt(BATCH)
