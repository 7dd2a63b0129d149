"""The published figure, and the effect of each difference of the published evaluation."""

import dataclasses
import math
import types
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from idode_gin import models, numerics
from idode_gin.dequantizers.base import AbstractDequantizer
from idode_gin.dequantizers.uniform import Uniform
from idode_gin.dequantizers.variational import Variational
from idode_gin.evaluation import parity
from idode_gin.interop import official_evaluation
from idode_gin.interop.official_evaluation import OfficialParity
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.solvers import tableaus
from idode_gin.solvers.fixed_grid import FixedGrid

from . import cases, official_config

PARITY = OfficialParity()
QUICK = ("ode_SP_v_K3", "ode_VP_tn_K1", "ode_VP_u_K3")
"""One of every dequantizer, with one sample or with several."""


def recorded_log_p(case, dequantizer, end, images, noise):
    """log p(z) of one recorded draw after another, nats: what its log-likelihood holds of the ODE.

    With one sample -log q is its mean; uniform noise has its 7 bits added at the end.
    """
    one, dims = case.model["num_importance"] == 1, case.dims
    for log_likelihood, each in zip(case.f64["tight_logps"], noise, strict=True):
        kind = case.model["dequantization"]
        entropy = dequantizer.entropy(dims, end) if one else dequantizer.neg_log_q(each, end)
        decoder = 0.0
        if kind == "v":
            y = end.encoding.encode(images) + jnp.exp(end.gamma / 2) * each
            decoder = official_evaluation.decoder_log_prob(end, images, y)
        yield log_likelihood - decoder - (0.0 if kind == "u" else entropy)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.full)
        for name in cases.of_kind("ode")
    ],
)
def test_published_figure_is_the_recorded_one(name, float64, monkeypatch):
    """Our figure for the recorded noise plus all differences equals the recorded figure."""
    case = cases.load(name)
    model = official_config.model_of(case.model)
    dequantizer, end = official_config.dequantizer_of(case.model), model.end
    images = jnp.asarray(case.inputs["images"])
    noise = jnp.asarray(case.inputs["noise"], jnp.float64)
    log_p = jnp.stack(list(recorded_log_p(case, dequantizer, end, images, noise)))
    right = jax.vmap(
        lambda log_p, noise: (
            log_p
            + dequantizer.log_reconstruction(images, dequantizer.start(images, noise, end), end)
        )
    )(log_p, noise)

    samples = case.model["num_importance"]
    if samples == 1:
        weights = right + dequantizer.entropy(case.dims, end)
    else:
        weights = right + jax.vmap(lambda each: dequantizer.neg_log_q(each, end))(noise)

    def recorded(self, params, batch, key, estimator):
        shape = (estimator.num_repeats, estimator.num_importance)
        assert shape == ((len(noise), 1) if samples == 1 else (1, len(noise)))
        success = jnp.ones(len(images), bool)
        return types.SimpleNamespace(log_weights=weights.reshape(*shape, -1), success=success)

    monkeypatch.setattr(models.DiffusionODE, "likelihood_fn", recorded)
    monkeypatch.setattr(ODELikelihood, "draw", lambda self, number, *_: (noise[number], None))
    estimator = ODELikelihood(dequantizer=dequantizer, num_importance=samples)
    batch = {"image": images, "index": jnp.arange(len(images))}
    # Of one sample, a first draw, as one repeat gives.
    ours = weights[0] if samples == 1 else numerics.log_mean_exp(weights)
    bpd = numerics.nats_to_bpd(-ours, case.dims)
    parts = PARITY.likelihood_parts(model, {}, batch, jax.random.key(0), estimator, bpd)
    np.testing.assert_allclose(bpd + sum(parts.values()), case.f64["tight_bpd"], rtol=1e-11)
    expected = -math.log2(samples) / case.dims
    np.testing.assert_allclose(parts[official_evaluation.LOG_K], expected, atol=1e-12)
    assert np.all((parts[official_evaluation.DECODER] != 0) == (dequantizer == Variational()))
    np.testing.assert_allclose(parts[official_evaluation.BITS_OF_BIN], 0, atol=1e-12)


def test_a_solve_that_fails_has_no_figure(monkeypatch):
    """One of the draws that ours does not make may reach `max_steps`."""
    batch = {"image": jnp.zeros((2, *tiny.SHAPE), jnp.uint8), "index": jnp.arange(2)}
    found = types.SimpleNamespace(
        log_weights=jnp.ones((5, 1, 2)), success=jnp.asarray([True, False])
    )
    monkeypatch.setattr(models.DiffusionODE, "likelihood_fn", lambda *_: found)
    parts = PARITY.likelihood_parts(
        tiny.model(),
        {},
        batch,
        jax.random.key(0),
        ODELikelihood(dequantizer=Uniform()),
        jnp.ones(2),
    )
    total = np.asarray(sum(parts.values()))
    np.testing.assert_array_equal(np.isfinite(total), [True, False])


@dataclasses.dataclass(frozen=True)
class TwiceDivided(AbstractDequantizer):
    """Variational dequantization with the published decoder."""

    right: Variational = Variational()

    def log_reconstruction(self, x, z, end):
        return official_evaluation.decoder_log_prob(end, x, z / end.alpha)

    def gamma_start(self, end):
        return self.right.gamma_start(end)

    def draw(self, keys, shape, end):
        return self.right.draw(keys, shape, end)

    def start(self, x, noise, end):
        return self.right.start(x, noise, end)

    def neg_log_q(self, noise, end):
        return self.right.neg_log_q(noise, end)

    def entropy(self, dims, end):
        return self.right.entropy(dims, end)


@pytest.mark.full_cases("Variational-3")
@pytest.mark.parametrize(
    ("kind", "samples"),
    [
        pytest.param(Uniform, 1, marks=pytest.mark.full),
        pytest.param(Variational, 1, marks=pytest.mark.full),
        (Variational, 3),
    ],
)
def test_parts_are_of_our_own_draws(kind, samples, float64):
    """A likelihood with the published decoder and counts, of the same key, is ours plus parts."""
    model, repeats = tiny.model(schedule=StraightPath()), 5 if samples == 1 else 1
    images = jnp.asarray(tiny.split(number=3).images)
    batch = {"image": images, "conditioning": jnp.zeros((3, 1)), "index": jnp.arange(3)}
    params, key = model.init(jax.random.key(0), tiny.SHAPE), jax.random.key(1)
    solver = FixedGrid(steps=1, tableau=tableaus.euler())
    ours = ODELikelihood(dequantizer=kind(), solver=solver, num_importance=samples)
    dequantizer = TwiceDivided() if kind is Variational else kind()
    theirs = dataclasses.replace(ours, num_repeats=repeats, dequantizer=dequantizer)

    @jax.jit
    def both():
        bpd = model.likelihood_fn(params, batch, key, ours).bits_per_dim(16)
        parts = PARITY.likelihood_parts(model, params, batch, key, ours, bpd)
        return bpd, parts, model.likelihood_fn(params, batch, key, theirs).log_p

    bpd, parts, log_p = both()
    expected = numerics.nats_to_bpd(-log_p - math.log(samples), 16)
    if kind is Uniform:
        expected += 7 - math.log2(tiny.LEVELS / 2)
    np.testing.assert_allclose(bpd + sum(parts.values()), expected, rtol=1e-9)
    # Repeats make a difference, and are noise; with one of K samples there is none.
    assert np.all((np.abs(parts[official_evaluation.REPEATS]) > 1e-12) == (samples == 1))


def test_decoder_of_a_variational_bound(float64):
    """About 0.02 bits per dim on the straight path, nearly zero on the variance-preserving path."""
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8))
    batch = {"image": images, "index": jnp.arange(4)}
    ends = {"gamma_min": -13.3, "gamma_max": 5.0, "vocab_size": 256}
    found = {}
    for schedule in ("SP", "VP"):
        config = cases.load(cases.of_kind("ode")[0]).model | ends | {"schedule": schedule}
        parts = PARITY.bound_parts(official_config.model_of(config), batch, jax.random.key(0))
        found[schedule] = float(np.mean(parts[official_evaluation.DECODER]))
    assert 0.005 < found["SP"] < 0.05, found
    assert abs(found["VP"]) < 1e-5, found


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(30, (8, 10, 1)), (30, (2, 5, 0)), (30, (2, 5, 7)), (7, (1, 3, 1)), (10, (4, 5, 0))],
)
def test_random_batches(count, sizes):
    """The deviation equals that over seeds, and is zero for whole epochs."""
    num_batches, batch_size, num_skipped = sizes
    values = np.random.default_rng(1).normal(3.0, 0.5, count)
    made = [
        OfficialParity(
            num_batches=num_batches, batch_size=batch_size, num_skipped=num_skipped, seed=seed
        )
        for seed in range(1500)
    ]
    orders = [each.stream(count) for each in made]
    assert {len(each) for each in orders} == {num_batches * batch_size}
    means = [np.mean(values[order]) for order in orders]
    expected = made[0].deviation(values, count)
    assert np.std(means) == pytest.approx(expected, rel=0.1, abs=1e-12)
    assert abs(np.mean(means) - np.mean(values)) <= 4 * expected / math.sqrt(len(means)) + 1e-12
    assert (expected == 0) == (sizes == (4, 5, 0))
    for order in orders[:3]:
        times = np.bincount(order, minlength=count)
        assert np.ptp(times) <= 2


@pytest.mark.parametrize(("count", "sizes"), [(2, (1, 1, 0)), (3, (1, 2, 0)), (4, (2, 1, 1))])
def test_the_deviation_is_that_over_all_orders(count, sizes):
    """Of few images, every order can be tried."""
    num_batches, batch_size, num_skipped = sizes
    parity = OfficialParity(num_batches=num_batches, batch_size=batch_size, num_skipped=num_skipped)
    values = np.array([1.0, 2.0, 4.0, 8.0])[:count]
    first = num_skipped * batch_size
    parts = [each[first : first + num_batches * batch_size] for each in permutations(values)]
    expected = np.std(np.mean(parts, axis=1))
    assert parity.deviation(values, count) == pytest.approx(expected, rel=1e-12)


def test_summary_adds_up():
    rng = np.random.default_rng(2)
    scores = {"bpd": rng.normal(3, 0.5, 50), "nfe": np.ones(50), "parity/a": rng.normal(size=50)}
    found = OfficialParity(num_batches=3, batch_size=10, num_skipped=0).summarize({"x": scores})
    section = found["x"]
    assert section["images_never_scored"] == 20
    total = section["right"] + section["a"] + section[official_evaluation.BATCHES]
    assert section["published"] == pytest.approx(total, rel=1e-12)
    assert section["right"] == np.mean(scores["bpd"])
    *legend, head, first, _, _, _, last, unscored = parity.table(
        found, PARITY.legend(found)
    ).splitlines()
    for name in (first, last, unscored):
        assert name.split()[0] in " ".join(legend)
    assert head.split() == ["bits", "per", "dim", "x"]


def test_a_part_has_the_rows_that_do_not_need_the_other_images():
    """Of 200 of 10,000 images: the program never scores a part, so its batches are of all."""
    rng = np.random.default_rng(3)
    whole = {"bpd": rng.normal(3, 0.5, 10_000), "parity/a": rng.normal(1, 0.1, 10_000)}
    part = {name: each[::50] for name, each in whole.items()}
    section = PARITY.summarize({"x": part}, 10_000)
    found, of_all = section["x"], PARITY.summarize({"x": whole})["x"]
    assert found["images_never_scored"] == of_all["images_never_scored"] == 0
    assert found["random_batches_sd"] == pytest.approx(of_all["random_batches_sd"], rel=0.2)
    assert 0 < found["random_batches_sd"] < 0.01
    assert found["published_mean_over_orders"] == pytest.approx(found["right"] + found["a"])
    assert {"random_batches", "published"} & found.keys() == set()
    assert "random_batches and published are left out" in PARITY.legend(section)
    assert "left out" not in PARITY.legend({"x": of_all})
    few = OfficialParity(num_batches=1, batch_size=100)
    assert few.summarize({"x": part}, 10_000)["x"]["images_never_scored"] == 9_900
    one = PARITY.summarize({"x": {"bpd": np.array([3.0])}}, 10_000)["x"]
    assert one.keys() == {"right", "published_mean_over_orders", "images_never_scored"}


def test_published_sizes():
    """100 batches of 256 after a first that is thrown away, of the 10,000 images of CIFAR-10."""
    times = np.bincount(PARITY.stream(10_000), minlength=10_000)
    assert times.sum() == 25_600
    assert set(times) == {1, 2, 3}
