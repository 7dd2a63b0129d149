"""A row counts only if all of its solves arrived; an interpolation starts and ends as its images.

The model's solves are replaced: they succeed or fail image by image, and decode to pixels that
show the conditioning which they were given.
"""

import dataclasses

import interrupted
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from idode_gin import checks
from idode_gin.feed import loading
from idode_gin.generation.encoder import Encoder
from idode_gin.generation.interpolator import Interpolator
from idode_gin.generation.sampler import Sampler
from idode_gin.models import DiffusionODE
from idode_gin.samplers.base import Samples
from idode_gin.samplers.latents import RoundTrip
from idode_gin.samplers.ode import ODESampler
from idode_gin.solvers.fixed_grid import FixedGrid

METHOD = ODESampler(solver=FixedGrid(steps=1))
POINTS = 4


@pytest.fixture
def solves(monkeypatch):
    """Replace the solves: sets of indices and of conditioning values that fail."""
    interrupted.prepare(monkeypatch.setattr)
    split = tiny.split(number=interrupted.NUMBER)
    index = np.arange(split.num_images, dtype=np.float32)
    split = dataclasses.replace(split, conditioning=index[:, None])
    monkeypatch.setattr(loading, "load_split", lambda config: split)
    fails = {"encode": [-1], "not finite": [-1], "decode": [-1.0], "no density": [-1]}

    def is_in(values, name):
        return jnp.any(jnp.abs(values[:, None] - jnp.asarray(fails[name])) < 0.1, axis=1)

    def pixels_of(conditioning):
        return jnp.broadcast_to(conditioning[:, :1, None, None], (len(conditioning), *tiny.SHAPE))

    def encode_fn(model, params, batch, key, sampler):
        shape, index = batch["image"].shape, batch["index"]
        zeros = jnp.zeros(index.shape)
        return RoundTrip(
            noise=jnp.ones(shape),
            pixels=batch["image"],
            error=jnp.where(is_in(index, "not finite"), jnp.nan, zeros),
            num_changed=zeros.astype(int),
            num_evaluations=zeros.astype(int),
            success=~is_in(index, "encode"),
        )

    def decode_fn(model, params, batch, sampler):
        conditioning = batch["conditioning"]
        return Samples(
            pixels=jnp.round(pixels_of(conditioning)).astype(int),
            latent=pixels_of(conditioning),
            num_evaluations=jnp.zeros(len(conditioning), int),
            success=~is_in(conditioning[:, 0], "decode"),
        )

    def sample_fn(model, params, batch, key, sampler):
        index = batch["index"]
        latent = jnp.where(is_in(index, "not finite"), jnp.nan, 1.0)
        return Samples(
            pixels=jnp.zeros((len(index), *tiny.SHAPE), int),
            latent=jnp.broadcast_to(latent[:, None, None, None], (len(index), *tiny.SHAPE)),
            num_evaluations=jnp.zeros(len(index), int),
            success=~is_in(index, "encode"),
            log_p=jnp.where(is_in(index, "no density"), -jnp.inf, 0.0),
        )

    monkeypatch.setattr(DiffusionODE, "encode_fn", encode_fn)
    monkeypatch.setattr(DiffusionODE, "decode_fn", decode_fn)
    monkeypatch.setattr(DiffusionODE, "sample_fn", sample_fn)
    return fails


def run(loop, folder, **changes):
    fields = {"output_dir": str(folder), "checkpoint_path": "made", "solve_size": 2, **changes}
    model = tiny.model(image_shape=tiny.SHAPE)
    if loop is Sampler:
        return loop(batch_size=3, **fields).run(model)
    return loop(method=METHOD, **fields).run(model, tiny.config(3))


def test_conditioning_goes_from_the_first_image_to_the_second(solves, tmp_path):
    run(Interpolator, tmp_path, pairs=((3, 9), (16, 1), (4, 4)), num_points=POINTS)
    with np.load(tmp_path / "interpolation.npz") as found:
        shown = found["levels"][:, :, 0, 0, 0]
    np.testing.assert_array_equal(shown, [[3, 5, 7, 9], [16, 11, 6, 1], [4, 4, 4, 4]])


@pytest.mark.parametrize(
    ("name", "values", "pairs"),
    [
        ("encode", [3, 4], 2),  # first of one pair, second of another
        ("decode", [6.0], 1),  # between the ends of a pair
        ("decode", [9.0, 16.0], 2),  # at an end
        ("encode", [3, 9], 1),  # both ends of a pair
    ],
)
def test_a_pair_counts_if_every_solve_of_it_arrived(solves, tmp_path, name, values, pairs):
    solves[name] = values
    with pytest.raises(checks.NonFiniteError, match=f"{pairs} of 4 pairs did not reach"):
        run(Interpolator, tmp_path, pairs=((3, 9), (16, 1), (4, 4), (7, 8)), num_points=POINTS)


@pytest.mark.parametrize(
    ("changes", "failed"), [({"encode": [1, 8]}, 2), ({"encode": [1], "not finite": [2, 8]}, 3)]
)
def test_an_encoded_image_counts_if_it_is_finite_and_arrived(solves, tmp_path, changes, failed):
    solves |= changes
    with pytest.raises(checks.NonFiniteError, match=f"{failed} of 4 images did not reach"):
        run(Encoder, tmp_path, indices=(1, 2, 5, 8))


def test_a_sample_counts_if_it_is_finite_and_arrived_with_its_density(solves, tmp_path):
    solves |= {"encode": [0], "not finite": [2], "no density": [4]}
    with pytest.raises(checks.NonFiniteError, match="3 of 6 samples did not reach"):
        run(Sampler, tmp_path, method=METHOD, num_samples=6, return_log_prob=True)
