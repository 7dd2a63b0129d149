"""Figures of a likelihood over repeats and importance samples, against each draw by itself."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.dequantizers.variational import Variational
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.divergence import Exact, Hutchinson
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.solvers.probes import Gaussian

from . import toys

SHAPE, NOISY, LEVELS, IMAGES = (2, 2, 1), 3.0, 5, 6
REPEATS, SAMPLES = 4, 3
pytestmark = pytest.mark.usefixtures("float64")


def problem():
    """A field whose Jacobian is not diagonal, its clean end, images and their keys."""
    schedule = StraightPath()
    end = toys.clean_end(schedule, LEVELS, 1.0)
    x = jnp.asarray(np.random.default_rng(0).integers(0, LEVELS, (IMAGES, *SHAPE)))
    return toys.mixture(schedule).field(Velocity()), end, x, toys.keys_of(3, IMAGES)


def each_draw(estimator):
    """Weights `[R, K, B]` and densities of every draw, computed one by one; and the estimate."""
    field, end, x, keys = problem()

    @jax.jit
    def one(number):
        noise, probes = estimator.draw(number, SHAPE, end, keys)
        weight, density = estimator.log_weight(field, end, NOISY, x, noise, probes)
        z = estimator.dequantizer.start(x, noise, end)
        decoder = estimator.dequantizer.log_reconstruction(x, z, end)
        return weight, density, decoder, weight - density.log_p - decoder

    draws = [one(number) for number in range(estimator.num_repeats * estimator.num_importance)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *draws)
    shape = (estimator.num_repeats, estimator.num_importance)
    parts = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), stacked)
    return parts, jax.jit(lambda: estimator(field, end, NOISY, x, keys))()


@pytest.mark.parametrize(
    ("dequantizer", "samples", "repeats"),
    [
        (TruncatedNormal(), SAMPLES, REPEATS),
        (TruncatedNormal(), 1, REPEATS),
        (Variational(), SAMPLES, REPEATS),
    ],
)
def test_every_figure_from_its_draws(dequantizer, samples, repeats):
    estimator = ODELikelihood(
        dequantizer=dequantizer,
        solver=FixedGrid(steps=8),
        divergence=Hutchinson(num_probes=3, probe=Gaussian()),
        num_importance=samples,
        num_repeats=repeats,
    )
    (weights, density, decoder, neg_log_q), found = each_draw(estimator)
    each_repeat = special.logsumexp(weights, axis=1) - math.log(samples)
    shares = special.softmax(weights, axis=1)
    variance = np.zeros(IMAGES)
    bias = np.zeros(IMAGES)
    for repeat in range(repeats):
        mixed = np.zeros((IMAGES, 3))
        for sample in range(samples):
            share, each = shares[repeat, sample], density.log_dets[repeat, sample]
            mixed += share[:, None] * each
            bias += share * each.var(axis=1, ddof=1) / 3 / 2 / repeats
        variance += mixed.var(axis=1, ddof=1) / 3 / repeats**2
        bias -= mixed.var(axis=1, ddof=1) / 3 / 2 / repeats
    expected = {
        "log_p": each_repeat.mean(axis=0),
        "repeats": each_repeat,
        "log_weights": weights,
        "log_prior": density.log_prior.mean(axis=(0, 1)),
        "log_det": density.log_det.mean(axis=(0, 1)),
        "neg_log_q": neg_log_q.mean(axis=(0, 1)),
        "log_reconstruction": decoder.mean(axis=(0, 1)),
        "trace_sd": np.sqrt(variance),
        "importance_bias": bias,
        "num_evaluations": density.num_evaluations.mean(axis=(0, 1)),
        "success": density.success.all(axis=(0, 1)),
    }
    assert set(expected) == set(found._fields)
    for name, values in expected.items():
        np.testing.assert_allclose(
            getattr(found, name), values, rtol=1e-9, atol=1e-12, err_msg=name
        )
    if samples * repeats > 1:
        assert np.all(np.ptp(weights, axis=(0, 1)) > 1e-3)


def test_noise_of_the_trace_moves_a_bound_and_does_not_raise_it():
    """The Jacobian of a Gaussian's field is the same for all samples, and so is its noise."""
    _, end, x, keys = problem()
    schedule, dims = StraightPath(), math.prod(SHAPE)
    pixels = toys.Gaussian(np.zeros(SHAPE), np.linspace(0.1, 2.0, dims).reshape(SHAPE), schedule)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(dims, dims)))

    def turned(z, matrix):
        return (z.reshape(-1, dims) @ matrix).reshape(z.shape)

    def noise_hat(z, gamma):
        return turned(pixels.noise_hat(turned(z, rotation), gamma), rotation.T)

    field = toys.field_of(schedule, Velocity(), noise_hat)
    exact, estimated = (
        ODELikelihood(
            dequantizer=TruncatedNormal(),
            solver=FixedGrid(steps=8),
            divergence=divergence,
            num_importance=SAMPLES,
            num_repeats=REPEATS,
        )(field, end, NOISY, x, keys)
        for divergence in (Exact(), Hutchinson())
    )
    shift = np.asarray(estimated.log_weights - exact.log_weights)
    assert np.all(np.ptp(shift, axis=1) < 1e-9)
    assert np.all(np.ptp(shift, axis=0) > 0.01)
    np.testing.assert_allclose(estimated.repeats, exact.repeats + shift[:, 0], atol=1e-9)


def test_an_image_succeeds_if_all_of_its_solves_do():
    """Some images have solves that end and solves that do not."""
    estimator = ODELikelihood(
        dequantizer=TruncatedNormal(),
        solver=DormandPrince(max_steps=5),
        num_importance=2,
        num_repeats=2,
    )
    (_, density, _, _), found = each_draw(estimator)
    together = density.success.reshape(-1, IMAGES)
    assert np.any(together.any(axis=0) & ~together.all(axis=0))
    np.testing.assert_array_equal(found.success, together.all(axis=0))


def test_network_evaluations_are_the_mean_over_solves_of_different_length():
    estimator = ODELikelihood(
        dequantizer=TruncatedNormal(), solver=DormandPrince(), num_importance=2, num_repeats=3
    )
    (_, density, _, _), found = each_draw(estimator)
    counts = density.num_evaluations.reshape(-1, IMAGES)
    assert np.any(np.ptp(counts, axis=0) > 0)
    np.testing.assert_allclose(found.num_evaluations, counts.mean(axis=0))
