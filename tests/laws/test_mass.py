"""Total probability of all images, which detects missing constants in the likelihood.

With two pixels of a few levels every image can be scored. The sum of unbiased estimates of P(x) is
the probability of the set of images: at most one, and equal to the estimate from samples.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.dequantizers.base import AbstractDequantizer
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.parameterizations.velocity import Velocity
from idode_gin.samplers.ode import ODESampler
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.solvers.divergence import Exact
from idode_gin.solvers.fixed_grid import FixedGrid

from . import discovery, toys

EACH_DEQUANTIZER = discovery.each("dequantizer", AbstractDequantizer)
EACH_SCHEDULE = discovery.each("schedule", AbstractSchedule)
SHAPE = (2, 1, 1)
TAU = 0.6
GAMMA_MAX = 3.0
SOLVER = FixedGrid(steps=24)
COPIES, REPEATS, SAMPLES = 400, 2, 40_000
pytestmark = pytest.mark.usefixtures("float64")


def random_field(schedule):
    """A Gaussian network plus a random one: a nonlinear ODE with a full Jacobian."""
    network = toys.TinyNetwork()
    params = network.init(jax.random.key(11), SHAPE)
    data = toys.gaussian(schedule, SHAPE, std_scale=0.5)

    def noise_hat(z, gamma):
        random = network(params, z, gamma / 5, jnp.ones((z.shape[0], 1)))
        return data.noise_hat(z, gamma) + 0.15 * random

    return toys.field_of(schedule, Velocity(), noise_hat)


def mass_of_all_images(field, end, dequantizer):
    """Independent unbiased estimates of the sum of P(x) over all images."""
    levels = end.encoding.levels
    images = jnp.asarray(list(itertools.product(range(levels), repeat=2))).reshape(-1, *SHAPE)
    x = jnp.tile(images, (COPIES, 1, 1, 1))
    estimator = ODELikelihood(
        dequantizer=dequantizer,
        solver=SOLVER,
        divergence=Exact(),
        num_importance=3,
        num_repeats=REPEATS,
    )
    run = jax.jit(lambda x, keys: estimator(field, end, GAMMA_MAX, x, keys))
    found = run(x, toys.keys_of(0, x.shape[0]))
    return np.exp(found.repeats).reshape(REPEATS, COPIES, -1).sum(-1).ravel()


def mass_of_samples(field, end, dequantizer):
    """Return the probability that each model sample belongs to some image, mostly 0 or 1."""
    start = dataclasses.replace(end, gamma_min=dequantizer.gamma_start(end))
    run = jax.jit(lambda keys: ODESampler(solver=SOLVER)(field, start, GAMMA_MAX, SHAPE, keys))
    z = run(toys.keys_of(1, SAMPLES)).latent
    nearest = end.encoding.decode(z / toys.latent_scale(dequantizer, end))
    if np.any(np.asarray(dequantizer.log_reconstruction(nearest, z, end)) != 0):
        return np.ones(SAMPLES)  # a decoder: for any z, P(x | z) sums to one
    inside = np.abs(np.asarray(z)) < toys.latent_scale(dequantizer, end)
    return np.all(inside, axis=(1, 2, 3)).astype(float)


def mean_and_error(values):
    return np.mean(values), np.std(values) / np.sqrt(len(values))


@pytest.mark.full_cases(
    ".*StraightPath-3", "Uniform-VariancePreserving-3", "Variational-VariancePreserving-3"
)
@pytest.mark.parametrize("levels", [3, pytest.param(4, marks=pytest.mark.full)])
@EACH_SCHEDULE
@EACH_DEQUANTIZER
def test_all_images_together_have_the_mass_of_the_range(dequantizer, schedule, levels):
    end = toys.clean_end(schedule, levels, TAU)
    field = random_field(schedule)
    scored, error = mean_and_error(mass_of_all_images(field, end, dequantizer))
    sampled, other_error = mean_and_error(mass_of_samples(field, end, dequantizer))
    assert error < 0.01
    assert abs(scored - sampled) < 4.5 * np.hypot(error, other_error)
    assert scored < 1 + 4.5 * error
    assert sampled > 0.3
