"""Random numbers: one key a draw, no draw used twice, each keyed by image, step and seed."""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from key_ledger import Ledger, words

from idode_gin.checkpoints import saving
from idode_gin.dequantizers.base import CleanEnd
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.dequantizers.uniform import Uniform
from idode_gin.dequantizers.variational import Variational
from idode_gin.encoding import Encoding
from idode_gin.evaluation import evaluator, scores
from idode_gin.evaluation import results as eval_results
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.losses.base import AbstractBound
from idode_gin.losses.bound import VariationalBound
from idode_gin.losses.first_order import FirstOrder
from idode_gin.losses.second_order import SecondOrder
from idode_gin.networks import blocks
from idode_gin.networks.unet import UNet
from idode_gin.runs import run_inputs
from idode_gin.samplers.ancestral import Ancestral
from idode_gin.samplers.base import AbstractSampler
from idode_gin.samplers.ode import ODESampler, ODESamplerWithDensity
from idode_gin.schedules.variance_preserving import VariancePreserving
from idode_gin.solvers import tableaus
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.divergence import Exact, Hutchinson
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.time_samplers.quantiles.independent import Independent
from idode_gin.time_samplers.quantiles.low_discrepancy import LowDiscrepancy
from idode_gin.time_samplers.uniform import Uniform as UniformTime
from idode_gin.training import programs, train_state, train_step

from .discovery import each

STEP = FixedGrid(steps=1, tableau=tableaus.euler())
GRID = Adams(steps=1, history=1)
IMAGES = 3


@pytest.fixture
def ledger():
    return Ledger()


def with_params(**changes):
    """A tiny model and its parameters."""
    model = tiny.model(**{"image_shape": tiny.SHAPE} | changes)
    return model, model.init(jax.random.key(7), tiny.SHAPE)


def batch_of(index=tuple(range(IMAGES))):
    """The first images of the tiny split under the given indices, which key the random numbers."""
    images = jnp.asarray(tiny.split(number=IMAGES).images)
    conditioning = jnp.zeros((IMAGES, 1))
    return {"image": images, "conditioning": conditioning, "index": jnp.asarray(index)}


def assert_uncorrelated(arrays):
    """Arrays [batch, …] of zero mean: no two, and no two examples of one, are correlated.

    The correlation of n independent pairs has a standard deviation of 1 / sqrt(n).
    """
    rows = [row.reshape(-1) for array in arrays for row in np.asarray(array, float)]
    size = min(row.size for row in rows)
    rows = np.stack([row[:size] / np.linalg.norm(row[:size]) for row in rows])
    products = rows @ rows.T - np.eye(len(rows))
    assert np.max(np.abs(products)) < 6 / np.sqrt(size)


@pytest.mark.parametrize("quantiles", [Independent(), LowDiscrepancy()])
@pytest.mark.parametrize(("loss", "probes"), [(FirstOrder(), 0), (SecondOrder(), 1)])
def test_draws_of_a_training_step(ledger, quantiles, loss, probes):
    size = 4
    model = tiny.model(time_sampler=UniformTime(quantiles=quantiles), loss=loss)
    draw = jax.jit(lambda key: model.draw(key, jnp.arange(size), (32, 32, 3), size))
    draws = draw(jax.random.key(0, impl=ledger.impl))
    times = size if isinstance(quantiles, Independent) else 1
    drawn, dropout = ledger.keys(), words(draws.dropout)
    assert len(drawn) == times + size * (2 + probes)
    assert len({*dropout}) == size
    stages = [
        jax.vmap(lambda key, n=n: jax.random.fold_in(key, n))(draws.dropout) for n in range(9)
    ]
    assert not drawn & {*dropout, *(each for keys in stages for each in words(keys))}
    noises = [draws.loss.noise, draws.reconstruction, *draws.loss.probes]
    assert_uncorrelated(noises)
    assert len({float(u) for u in draws.u}) == size


def test_every_dropout_of_a_network_has_its_own_key(ledger):
    levels, shape, size = 1, (4, 4, 1), 2
    network = UNet(channels=4, levels=levels, groups=2, dropout_rate=0.5, fourier_exponents=())
    params = network.init(jax.random.key(0), shape)
    keys = jax.random.split(jax.random.key(1, impl=ledger.impl), size)

    @jax.jit
    def run(keys):
        z = jnp.ones((size, *shape))
        return network(params, z, jnp.ones(size), jnp.zeros((size, 1)), keys)

    run(keys)
    down, middle, up = levels, 2, levels + 1
    assert len(ledger.keys()) == size * (down + middle + up)


@pytest.mark.parametrize("rate", [0.1, 0.9])
def test_dropout_keeps_features_independently(rate):
    """Also two that share a random word; and of a number of features that is odd."""
    mask = blocks.kept(jax.random.split(jax.random.key(1), 3), rate, (99, 101, 7))
    first, second = np.asarray(mask).reshape(3, -1)[:, :-1].reshape(-1, 2).T - (1 - rate)
    for moment in (first, second, first * second / np.sqrt(rate * (1 - rate))):
        assert abs(moment.mean()) < 5 * np.sqrt(rate * (1 - rate) / moment.size)


@pytest.mark.parametrize("update_period", [1, 2])
def test_steps_and_microbatches_share_no_key(ledger, update_period):
    # The offset of low-discrepancy quantiles is shared by microbatches: they are one batch.
    model, params = with_params(
        loss=SecondOrder(), time_sampler=UniformTime(quantiles=Independent())
    )
    transformation = tiny.trainer("unused").optimizer.build()
    size, steps = 4, 3
    config = train_step.UpdateConfig(
        ema_rate=0.5, log_period=1, num_microbatches=2, update_period=update_period
    )
    batch = {
        "image": jnp.asarray(tiny.split(number=size).images),
        "conditioning": jnp.zeros((size, 1)),
        "position": jnp.arange(size),
    }
    key = jax.random.key(0, impl=ledger.impl)
    names = train_step.metric_names(model.loss_fn, params, batch, jax.random.key(0))
    state = train_state.create(params, transformation, names)
    update = jax.jit(train_step.make_train_step(model.loss_fn, transformation, key, config))
    ledger.clear()
    for _ in range(steps):
        state, _ = update(state, batch)
    assert len(ledger.keys()) == steps * size * 4


@pytest.mark.parametrize("dequantizer", [TruncatedNormal(), Uniform(), Variational()])
@pytest.mark.parametrize(("divergence", "probes"), [(Hutchinson(num_probes=2), 1), (Exact(), 0)])
def test_a_likelihood_draws_noise_and_probes_apart(ledger, dequantizer, divergence, probes):
    model, params = with_params()
    estimator = ODELikelihood(
        dequantizer=dequantizer,
        solver=STEP,
        divergence=divergence,
        num_importance=2,
        num_repeats=3,
    )
    run = jax.jit(lambda key: model.likelihood_fn(params, batch_of(), key, estimator))
    run(jax.random.key(0, impl=ledger.impl))
    assert len(ledger.keys()) == IMAGES * 3 * (2 + probes)  # a repeat has probes, each draw noise


def test_noise_and_probes_of_a_likelihood_are_not_correlated():
    model, shape = tiny.model(), (32, 32, 3)
    estimator = ODELikelihood(
        dequantizer=TruncatedNormal(), divergence=Hutchinson(num_probes=2), num_importance=2
    )
    keys = jax.random.split(jax.random.key(0), IMAGES)
    pairs = [estimator.draw(number, shape, model.end, keys) for number in range(4)]
    for first, second in (pairs[:2], pairs[2:]):
        np.testing.assert_array_equal(first[1], second[1])
    assert_uncorrelated([*(noise for noise, _ in pairs), *pairs[0][1], *pairs[2][1]])


@each("estimator", AbstractBound)
def test_a_bound_draws_times_noise_and_reconstruction_apart(ledger, estimator):
    model, params = with_params()
    run = jax.jit(lambda key: model.bound_fn(params, batch_of(), key, estimator))
    run(jax.random.key(0, impl=ledger.impl))
    assert len(ledger.keys()) == IMAGES * (2 + estimator.num_times)


@each("sampler", AbstractSampler)
def test_a_sampler_draws_start_and_steps_apart(ledger, sampler):
    model, params = with_params()
    if isinstance(sampler, Ancestral):
        sampler = Ancestral(steps=4)
    run = jax.jit(lambda key: model.sample_fn(params, batch_of(), key, sampler))
    run(jax.random.key(0, impl=ledger.impl))
    others = {Ancestral: 4, ODESamplerWithDensity: 1}  # noise of each step; probes
    assert len(ledger.keys()) == IMAGES * (1 + others.get(type(sampler), 0))


def test_bounds_of_an_evaluation_share_no_key(ledger, monkeypatch, tmp_path):
    """Neither do two of one kind, or of grids that share a program, under two names."""
    tiny.use_tiny_data(monkeypatch, IMAGES)
    model, params = with_params()
    restored = saving.RestoredParams(params, 3, pathlib.Path("unread"), {})
    monkeypatch.setattr(run_inputs, "load_params", lambda *_: restored)
    monkeypatch.setattr(saving, "find", pathlib.Path)
    monkeypatch.setattr(eval_results, "draw", lambda *_: None)
    key = functools.partial(jax.random.key, impl=ledger.impl)
    monkeypatch.setattr(jax.random, "key", key)
    likelihood, grid = (
        ODELikelihood(dequantizer=TruncatedNormal(), solver=each) for each in (STEP, GRID)
    )
    made = evaluator.Evaluator(
        output_dir=str(tmp_path),
        checkpoint_path="made",
        likelihoods={"first": likelihood, "second": likelihood, "third": grid, "fourth": grid},
        variational_bound=VariationalBound(num_times=2),
        solve_size=IMAGES,
    )
    made.run(model, tiny.config(IMAGES))
    assert len(ledger.keys()) >= IMAGES * (4 * 2 + 4)


def test_bounds_of_any_two_names_have_keys_of_their_own():
    """Names of equal length, of the same letters, and prefixes of others among them."""
    names = ["".join(each) for n in range(1, 5) for each in itertools.product("ab_", repeat=n)]
    names += ["variational_bound", "truncated_normal", "uniform", "variational", "discrete_time_9"]
    keys = [scores.key_of(seed, name) for seed in (0, 1) for name in names]
    assert len(set(words(jnp.stack(keys)))) == 2 * len(names)
    assert words(scores.key_of(jax.random.key(1), names[-1])) == words(keys[-1])


def test_initialization_training_and_evaluation_share_no_key(ledger, monkeypatch):
    key, size, steps = functools.partial(jax.random.key, impl=ledger.impl), 4, 2
    monkeypatch.setattr(jax.random, "key", key)
    model, trainer = tiny.model(), tiny.trainer("unused")
    blank = run_inputs.blank_batch(model, tiny.SHAPE, size)
    program = trainer.program(model, tiny.SHAPE, blank)
    batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), blank)
    batch |= {"position": jnp.arange(size), "index": jnp.arange(size)}
    state = program.init()
    for _ in range(steps):
        state, _ = program.step(state, batch)
    program.evaluate(state.ema, batch)
    # Two kernels; an offset and two noises per example; an offset, a noise and eight per image.
    assert len(ledger.keys()) == 2 + steps * (1 + 2 * size) + size * (2 + 8)


def test_the_keys_of_a_run_are_three_and_other_ones_for_each_seed():
    found = [word for seed in range(50) for word in words(jnp.stack(programs.keys(seed)))]
    assert len({*found}) == len(found) == 3 * 50


FIGURES = {
    "likelihood": lambda model, params, batch, key: model.likelihood_fn(
        params, batch, key, ODELikelihood(dequantizer=Variational(), solver=STEP)
    )._asdict(),
    "bound": lambda model, params, batch, key: model.bound_fn(
        params, batch, key, VariationalBound(num_times=2)
    ),
    "sample": lambda model, params, batch, key: {
        "latent": model.sample_fn(params, batch, key, ODESampler(solver=STEP)).latent
    },
    "encode": lambda model, params, batch, key: {
        "noise": model.encode_fn(params, batch, key, ODESampler(solver=STEP)).noise
    },
}

FIXED = {
    "prior",
    "log_det",
    "neg_log_q",
    "num_evaluations",
    "success",
    "trace_sd",
    "importance_bias",
}
"""Figures that do not depend on random numbers here: the field is affine in z, K and R are one."""


@pytest.mark.parametrize("name", FIGURES)
def test_figures_follow_the_index_and_the_seed(name):
    """Each image's figure is a function of its index and the seed, wherever it is in the batch."""
    model, params = with_params()

    @jax.jit
    def run(batch, key):
        return FIGURES[name](model, params, batch, key)

    key, index = jax.random.key(3), (5, 9, 2)
    found = run(batch_of(index), key)
    order = np.array([2, 0, 1])
    moved = run(jax.tree.map(lambda leaf: leaf[order], batch_of(index)), key)
    other_index, other_seed = run(batch_of((6, 8, 3)), key), run(batch_of(index), jax.random.key(4))
    for figure, values in found.items():
        axis = {"repeats": 1, "log_weights": 2}.get(figure, 0)
        at_order = np.take(np.asarray(values), order, axis=axis)
        np.testing.assert_array_equal(moved[figure], at_order, err_msg=figure)
        if figure in FIXED:
            continue
        for other in (other_index, other_seed):
            same = np.isclose(values, other[figure], rtol=1e-6, atol=0)
            assert not np.any(np.moveaxis(same, axis, 0).reshape(IMAGES, -1).all(axis=1)), figure


def test_equal_images_of_a_batch_have_different_noise():
    """The density of one image at different indices differs by its dequantization noise."""
    model, params = with_params()
    batch = batch_of()
    batch["image"] = jnp.broadcast_to(batch["image"][:1], batch["image"].shape)
    for run in FIGURES.values():
        for figure, values in run(model, params, batch, jax.random.key(0)).items():
            if figure in FIXED:
                continue
            rows = np.moveaxis(np.asarray(values), 1 if figure == "repeats" else 0, 0)
            for first, second in itertools.combinations(rows, 2):
                assert np.any(first != second), figure


def test_wide_truncated_normal_noise_has_no_outlier():
    """jax alone draws the end of the interval wherever its uniform number is the lowest one."""
    keys, shape, levels = jax.random.key(2468)[None], (64, 64, 1), 17
    path = VariancePreserving()
    end = CleanEnd(schedule=path, encoding=Encoding(levels=levels), gamma_min=-13.3)
    assert end.tau > 45
    raw = jax.random.truncated_normal(keys[0], -end.tau, end.tau, shape)
    assert raw.min() < -45  # the next one is at -5.2: one in 10^7 of a normal distribution
    found = TruncatedNormal().draw(keys, shape, end)[0]
    assert found.min() > -5.5
    np.testing.assert_array_equal(np.where(raw < -45, found.min(), raw), found)
