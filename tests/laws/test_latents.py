"""Laws of latents: the round trip, and spherical interpolation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.parameterizations.velocity import Velocity
from idode_gin.samplers import latents
from idode_gin.samplers.base import Samples
from idode_gin.samplers.ode import Encoded, ODESampler
from idode_gin.schedules.base import AbstractSchedule
from idode_gin.schedules.straight_path import StraightPath
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.fixed_grid import FixedGrid

from . import discovery, toys

EACH_SCHEDULE = discovery.each("schedule", AbstractSchedule)
SHAPE, LEVELS, TAU, NOISY = (2, 2, 1), 6, 2.0, 3.0
pytestmark = pytest.mark.usefixtures("float64")


def round_trip(schedule, x, keys, solver):
    end, field = toys.clean_end(schedule, LEVELS, TAU), toys.gaussian(schedule).field(Velocity())
    sampler = ODESampler(solver=solver)
    return jax.jit(lambda x, keys: latents.round_trip(field, end, NOISY, x, keys, sampler))(x, keys)


@pytest.mark.full_cases("Straight.*")
@EACH_SCHEDULE
def test_images_come_back(schedule):
    x = jnp.asarray(np.random.default_rng(0).integers(0, LEVELS, (6, *SHAPE)))
    tight = DormandPrince(rtol=1e-9, atol=1e-9)
    found = round_trip(schedule, x, toys.keys_of(0, 6), tight)
    np.testing.assert_array_equal(found.pixels, x)
    np.testing.assert_array_equal(found.num_changed, 0)
    assert np.all(np.asarray(found.error) < 1e-6)
    assert np.all(np.asarray(found.success))
    # The closed form takes the noise back into each pixel's bin.
    end, data = toys.clean_end(schedule, LEVELS, TAU), toys.gaussian(schedule)
    there = schedule.sigma(jnp.asarray(NOISY)) * found.noise
    y = data.transported(there, NOISY, end.gamma_min) / float(end.alpha)
    inside = (y - np.asarray(end.encoding.encode(x))) * LEVELS
    assert np.abs(inside).max() < 1 + 1e-6
    assert inside.std() > 0.1


def test_a_round_trip_arrives_if_it_does_both_ways(monkeypatch):
    """Solves arrive for some images only, each way for others; image number n changes n pixels."""
    schedule = StraightPath()
    end, field = toys.clean_end(schedule, LEVELS, TAU), toys.gaussian(schedule).field(Velocity())
    there, back = jnp.asarray([True, False, True, False]), jnp.asarray([True, True, False, False])

    def to_noise(sampler, field, end, gamma_max, z):
        return Encoded(noise=z, num_evaluations=jnp.arange(1, 5), success=there)

    def from_noise(sampler, field, end, gamma_max, noise):
        return Samples(pixels, noise, num_evaluations=10 * jnp.arange(1, 5), success=back)

    is_changed = jnp.arange(4)[:, None] > jnp.arange(math.prod(SHAPE))
    pixels = is_changed.astype(int).reshape(4, *SHAPE)
    monkeypatch.setattr(ODESampler, "to_noise", to_noise)
    monkeypatch.setattr(ODESampler, "from_noise", from_noise)
    sampler = ODESampler(solver=FixedGrid(steps=1))
    x, keys = jnp.zeros((4, *SHAPE), int), toys.keys_of(0, 4)
    found = latents.round_trip(field, end, NOISY, x, keys, sampler)
    np.testing.assert_array_equal(found.success, [True, False, False, False])
    np.testing.assert_array_equal(found.num_evaluations, [11, 22, 33, 44])
    np.testing.assert_array_equal(found.num_changed, [0, 1, 2, 3])


def test_the_round_trip_error_is_in_levels():
    """For a coarse solver, compared with the closed form of the round trip."""
    schedule = StraightPath()
    x = jnp.asarray(np.random.default_rng(1).integers(0, LEVELS, (4, *SHAPE)))
    coarse = FixedGrid(steps=2)
    found = round_trip(schedule, x, toys.keys_of(1, 4), coarse)
    end, field = toys.clean_end(schedule, LEVELS, TAU), toys.gaussian(schedule).field(Velocity())
    back = ODESampler(solver=coarse).from_noise(field, end, NOISY, found.noise)
    there = round_trip(schedule, x, toys.keys_of(1, 4), coarse)
    y = np.asarray(back.latent / end.alpha)
    start = latents.TruncatedNormal()
    z = start.start(x, start.draw(toys.keys_of(1, 4), SHAPE, end), end)
    moved = (y - np.asarray(z / end.alpha)) / (2 / LEVELS)
    np.testing.assert_allclose(there.error, np.sqrt((moved**2).mean(axis=(1, 2, 3))), rtol=1e-9)
    assert found.error[0] > 1e-3
    np.testing.assert_array_equal(found.num_changed, (back.pixels != x).sum(axis=(1, 2, 3)))
    np.testing.assert_array_equal(found.num_evaluations, 2 * 4 * 2)


def test_points_between_noise_are_as_long_as_noise():
    first, second = jax.random.normal(jax.random.key(0), (2, 3, 16, 16, 1))
    first = first / jnp.sqrt(jnp.sum(first**2, (1, 2, 3), keepdims=True))
    second = second / jnp.sqrt(jnp.sum(second**2, (1, 2, 3), keepdims=True))
    points = latents.between(first, second, 5)
    assert points.shape == (3, 5, 16, 16, 1)
    np.testing.assert_allclose(points[:, 0], first, atol=1e-12)
    np.testing.assert_allclose(points[:, -1], second, atol=1e-12)
    np.testing.assert_allclose(jnp.sum(points**2, (2, 3, 4)), 1, rtol=1e-12)
    steps = jnp.sum(points[:, 1:] * points[:, :-1], (2, 3, 4))  # cosines of equal angles
    np.testing.assert_allclose(steps, steps[:, :1] * jnp.ones(4), rtol=1e-12)


def test_between_an_image_and_itself_there_is_itself():
    noise = jax.random.normal(jax.random.key(2), (2, *SHAPE))
    points = latents.between(noise, noise, 3)
    np.testing.assert_allclose(points, jnp.stack([noise] * 3, 1), rtol=1e-9)
    half = latents.spherical(noise, 3 * noise, jnp.full(2, 0.5))
    np.testing.assert_allclose(half, 2 * noise, rtol=1e-9)
    nothing = latents.between(jnp.zeros_like(noise), noise, 3)
    assert np.all(np.isfinite(np.asarray(nothing)))
