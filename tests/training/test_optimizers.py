"""AdamW: its schedule, what it decays, accumulation, clipping, and the errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from idode_gin.training.optimizers import AdamW, decayed

PARAMS = {
    "dense": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0, 4.0])},
    "norm": {"scale": jnp.array([5.0]), "bias": jnp.array([6.0])},
}


def gradients(number):
    """Deterministic gradients of the shapes of PARAMS."""
    rng = np.random.default_rng(number)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), PARAMS)


def run(optimizer, grads):
    """Parameters after each of the given gradients."""
    transformation = optimizer.build()
    params, state, history = PARAMS, transformation.init(PARAMS), []
    for each in grads:
        updates, state = transformation.update(each, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


def assert_trees_close(actual, expected, rtol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), actual, expected)


def test_published_learning_rates(float64):
    with_decay = AdamW(learning_rate=3e-3, warmup_steps=2, decay_steps=6)
    rates = [float(with_decay.learning_rate_at(step)) for step in range(5)]
    np.testing.assert_allclose(rates, [1e-8, 1.500005e-3, 3e-3, 2.2500025e-3, 1.500005e-3])
    rates = [float(AdamW().learning_rate_at(step)) for step in range(3)]
    np.testing.assert_allclose(rates, [1e-8, 2.0099e-6, 4.0098e-6])


def test_ends_of_the_schedule():
    optimizer = AdamW(learning_rate=0.01, warmup_steps=3, decay_steps=10)
    assert optimizer.learning_rate_at(3) == np.float32(0.01)
    np.testing.assert_allclose(optimizer.learning_rate_at(10), 1e-8, rtol=1e-6)
    np.testing.assert_allclose(optimizer.learning_rate_at(1000), 1e-8, rtol=1e-6)
    assert AdamW(learning_rate=0.01, warmup_steps=0).learning_rate_at(0) == np.float32(0.01)
    constant = AdamW(learning_rate=0.01, warmup_steps=3)
    assert constant.learning_rate_at(10**7) == np.float32(0.01)


def test_the_update_uses_the_rate_of_its_step():
    """Adam's first step moves every entry by the learning rate, whatever the gradient."""
    optimizer = AdamW(learning_rate=0.01, warmup_steps=4, weight_decay=0.0, b1=0.0, b2=0.0)
    history = [PARAMS, *run(optimizer, [gradients(0)] * 3)]
    for step in range(3):
        rate = float(optimizer.learning_rate_at(step))
        moved = jax.tree.map(lambda a, b: jnp.abs(a - b), history[step + 1], history[step])
        for leaf in jax.tree.leaves(moved):
            np.testing.assert_allclose(leaf, rate, atol=1e-6)


def test_biases_are_not_decayed_and_scales_are():
    optimizer = AdamW(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    (after,) = run(optimizer, [jax.tree.map(jnp.zeros_like, PARAMS)])
    shrunk = 1 - 0.1 * 0.5
    expected = {
        "dense": {"kernel": shrunk * PARAMS["dense"]["kernel"], "bias": PARAMS["dense"]["bias"]},
        "norm": {"scale": shrunk * PARAMS["norm"]["scale"], "bias": PARAMS["norm"]["bias"]},
    }
    assert_trees_close(after, expected)
    assert decayed(PARAMS) == {
        "dense": {"kernel": True, "bias": False},
        "norm": {"scale": True, "bias": False},
    }


def test_accumulation_is_one_step_with_the_mean_gradient():
    many = [gradients(number) for number in range(3)]
    mean = jax.tree.map(lambda *each: sum(each) / 3, *many)
    # The warm-up counts training steps: the single update is made at step 2, counted from zero.
    accumulated = AdamW(learning_rate=0.1, warmup_steps=4, accumulation_steps=3)
    rate = float(accumulated.learning_rate_at(2))
    history = run(accumulated, many)
    assert_trees_close(history[0], PARAMS)
    assert_trees_close(history[1], PARAMS)
    (expected,) = run(AdamW(learning_rate=rate, warmup_steps=0), [mean])
    assert_trees_close(history[2], expected)


def test_clipping_scales_long_gradients_only():
    long = jax.tree.map(lambda leaf: 100 * leaf, gradients(0))
    norm = float(optax.global_norm(long))
    short = jax.tree.map(lambda leaf: leaf * 0.5 / norm, long)
    # eps is large, so that Adam does not undo the scaling.
    clipped = AdamW(learning_rate=0.1, warmup_steps=0, eps=1.0, clip_norm=0.5)
    free = AdamW(learning_rate=0.1, warmup_steps=0, eps=1.0)
    assert_trees_close(run(clipped, [long]), run(free, [short]))
    assert_trees_close(run(clipped, [short]), run(free, [short]))
    assert not np.allclose(
        run(free, [long])[0]["norm"]["scale"], run(free, [short])[0]["norm"]["scale"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"b2": 1.0}, r"b2.*\[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"accumulation_steps": 0}, "accumulation_steps"),
        ({"warmup_steps": 5, "decay_steps": 5}, "decay_steps.*TRAIN_STEPS"),
    ],
)
def test_numbers_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        AdamW(**changes)
