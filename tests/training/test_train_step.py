"""One update: randomness, microbatches, moving average, window of metrics, finiteness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from idode_gin import checks
from idode_gin.feed import batches
from idode_gin.losses.second_order import SecondOrder
from idode_gin.networks.unet import UNet
from idode_gin.training import guards, train_state, train_step

KEY = jax.random.key(5)


def make(model=None, *, transformation=None, **changes):
    """Return the initial state and the jitted update of a tiny model."""
    model = model or tiny.model()
    transformation = transformation or optax.sgd(0.1)
    params = model.init(jax.random.key(0), tiny.SHAPE)
    names = train_step.metric_names(model.loss_fn, params, batch_of(0), KEY)
    state = train_state.create(params, transformation, names)
    numbers = {"ema_rate": 0.75, "log_period": 2} | changes
    config = train_step.UpdateConfig(**numbers)
    update = train_step.make_train_step(model.loss_fn, transformation, KEY, config)
    return state, jax.jit(update, donate_argnums=0)


def batch_of(step, size=8):
    batch = batches.train_batch(tiny.split(), tiny.config(size), step)
    return {name: jnp.asarray(array) for name, array in batch.items()}


def copied(tree):
    return jax.tree.map(jnp.array, tree)


def assert_trees_close(actual, expected, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), actual, expected)


def test_gradient_descent_by_hand():
    """Two steps of plain gradient descent, each with the key of its step."""
    model = tiny.model()
    state, update = make(model)
    params = copied(state.params)
    for step in range(2):
        key = jax.random.fold_in(KEY, step)
        (loss, _), grads = jax.value_and_grad(model.loss_fn, has_aux=True)(
            params, batch_of(step), key, 8
        )
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        state, health = update(state, batch_of(step))
        np.testing.assert_allclose(health["loss"], loss, rtol=1e-6)
        np.testing.assert_allclose(health["grad_norm"], optax.global_norm(grads), rtol=1e-5)
        np.testing.assert_allclose(health["param_norm"], optax.global_norm(params), rtol=1e-5)
    assert int(state.step) == 2
    assert_trees_close(state.params, params, rtol=1e-5)


@pytest.mark.full_cases("4")
@pytest.mark.parametrize("parts", [2, 4])
def test_microbatches_give_the_step_of_the_whole_batch(parts, float64):
    state, update = make()
    whole, whole_health = update(state, batch_of(0))
    state, update = make(num_microbatches=parts)
    split, split_health = update(state, batch_of(0))
    assert_trees_close(copied(split), copied(whole), rtol=1e-11)
    assert_trees_close(split_health, whole_health, rtol=1e-11)


def test_microbatches_must_divide_the_batch():
    state, update = make(num_microbatches=3)
    with pytest.raises(ValueError, match=r"batch_size=8.*num_microbatches=3.*next valid.*9"):
        update(state, batch_of(0))


def test_average_is_the_weighted_sum_of_all_parameters(float64):
    state, update = make()
    history = [copied(state.params)]
    for step in range(3):
        state, _ = update(state, batch_of(step))
        history.append(copied(state.params))
    weights = [0.75**3, 0.25 * 0.75**2, 0.25 * 0.75, 0.25]
    expected = jax.tree.map(lambda *each: sum(map(np.multiply, weights, each)), *history)
    assert_trees_close(state.ema, expected, rtol=1e-12)


def test_average_of_constant_parameters_does_not_drift():
    state, update = make(transformation=optax.sgd(0.0), ema_rate=0.9)
    before = copied(state.params)
    for _ in range(200):
        state, _ = update(state, batch_of(0))
    jax.tree.map(np.testing.assert_array_equal, copied(state.ema), before)


def test_average_moves_only_when_the_parameters_do():
    state, update = make(update_period=2)
    before = copied(state.ema)
    state, _ = update(state, batch_of(0))
    jax.tree.map(np.testing.assert_array_equal, copied(state.ema), before)
    state, _ = update(state, batch_of(1))
    expected = jax.tree.map(lambda e, p: 0.75 * e + 0.25 * np.array(p), before, state.params)
    assert_trees_close(state.ema, expected, rtol=1e-6)


def test_window_holds_means_since_the_last_log():
    state, update = make(log_period=2)
    losses, norms = [], []
    for step in range(3):
        state, health = update(state, batch_of(step))
        losses.append(float(health["loss"]))
        norms.append(float(health["grad_norm"]))
        start = 0 if step < 2 else 2
        means = train_state.window_means(state)
        np.testing.assert_allclose(means["loss"], np.mean(losses[start:]), rtol=1e-6)
        np.testing.assert_allclose(means["grad_norm"], np.mean(norms[start:]), rtol=1e-6)
    assert set(means) >= {"loss", "bpd", "prior", "reconstruction", "diffusion", "grad_norm"}


def test_steps_draw_different_noise():
    state, update = make(transformation=optax.sgd(0.0))
    losses = []
    for _ in range(3):
        state, health = update(state, batch_of(0))
        losses.append(float(health["loss"]))
    assert len(set(losses)) == 3


def health_of(**values):
    values = {"loss": 1.0, "grad_norm": 1.0, "param_norm": 1.0} | values
    is_good = np.isfinite([values["loss"], values["grad_norm"]]).all()
    values |= {"verdict": 0 if is_good else 1, "run": 1, "total": 1, "loss_mean": 0.0}
    return {name: jnp.asarray(each) for name, each in values.items()}


def test_watch_looks_a_few_steps_back():
    watch = guards.Watch(look_ahead=2)
    watch.push(1, health_of(loss=np.nan))
    watch.push(2, health_of(loss=2.0))
    with pytest.raises(checks.NonFiniteError, match="Step 1 is not finite: loss nan"):
        watch.push(3, health_of())


@pytest.mark.parametrize("name", ["loss", "grad_norm", "param_norm"])
def test_watch_checks_every_norm_when_drained(name):
    watch = guards.Watch()
    watch.push(1, health_of())
    watch.push(2, health_of(**{name: np.inf}))
    with pytest.raises(checks.NonFiniteError, match="Step 2"):
        watch.drain()


def test_overflow_of_the_update_is_seen():
    """Loss and gradient are finite, the parameters after the update are not."""
    state, update = make(transformation=optax.sgd(1e38))
    state, health = update(state, batch_of(0))
    assert np.isfinite(health["loss"])
    assert not np.isfinite(health["param_norm"])


@pytest.mark.parametrize(
    "changes", [{"ema_rate": 1.0}, {"log_period": 0}, {"num_microbatches": 0}, {"update_period": 0}]
)
def test_numbers_out_of_range(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        make(**changes)


def test_state_is_one_pytree_with_names():
    state, _ = make()
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert ".params['out']['kernel']" in paths
    assert ".step" in paths
    assert jnp.issubdtype(state.step.dtype, jnp.integer)


def test_bfloat16_stays_inside_the_network():
    """State, gradient, loss, metrics, latents and the network's output are float32."""
    network = UNet(channels=8, levels=1, groups=4, fourier_exponents=(), dtype="bfloat16")
    model = dataclasses.replace(tiny.model(), network=network, loss=SecondOrder())
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), tiny.SHAPE))
    batch, transformation = batch_of(0), optax.adamw(0.1)
    names = train_step.metric_names(model.loss_fn, params, batch, KEY)
    state = jax.eval_shape(lambda p: train_state.create(p, transformation, names), params)
    config = train_step.UpdateConfig(ema_rate=0.9, log_period=2)
    update = train_step.make_train_step(model.loss_fn, transformation, KEY, config)
    made = jax.eval_shape(update, state, batch), jax.eval_shape(jax.grad(loss_of(model)), params)
    floats = {
        leaf.dtype for leaf in jax.tree.leaves(made) if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    assert floats == {jnp.dtype("float32")}
    arrays = list(arrays_of(jax.make_jaxpr(update)(state, batch).jaxpr))
    coarse = [each for each in arrays if each.dtype == jnp.bfloat16]
    assert len(coarse) > 100
    image = (batch["image"].shape[0], *tiny.SHAPE)
    assert image in {each.shape for each in arrays}
    assert image not in {each.shape for each in coarse}


def loss_of(model):
    return lambda params: model.loss_fn(params, batch_of(0), KEY)[0]


def arrays_of(jaxpr):
    """Yield every computed array, inside loops and calls too."""
    for equation in jaxpr.eqns:
        yield from (each.aval for each in equation.outvars)
        for value in equation.params.values():
            if hasattr(inner := getattr(value, "jaxpr", value), "eqns"):
                yield from arrays_of(inner)


@pytest.mark.parametrize("rate", [0.2, 0.9])
def test_average_that_warms_up(rate, float64):
    state, update = make(ema_rate=rate, ema_warmup=True, update_period=2)
    average = copied(state.params)
    for step in range(8):
        state, _ = update(state, batch_of(step))
        if step % 2:
            n = step // 2
            decay = min(rate, (1 + n) / (10 + n))
            average = jax.tree.map(
                lambda e, p, decay=decay: decay * e + (1 - decay) * np.array(p),
                average,
                state.params,
            )
    assert_trees_close(state.ema, average, rtol=1e-9)
