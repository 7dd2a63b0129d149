"""A row counts only if all of its solves arrived, and every figure is of its own images.

The model's solves are replaced: they succeed or fail image by image, decode to pixels that show the
conditioning which they were given, and return numbers that follow from the image's index and seed.
"""

import dataclasses
import pathlib

import interrupted
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from idode_gin import checks
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import loading
from idode_gin.generation.encoder import Encoder
from idode_gin.generation.interpolator import Interpolator
from idode_gin.generation.sampler import Sampler
from idode_gin.models import DiffusionODE
from idode_gin.reports import plots
from idode_gin.samplers.base import Samples
from idode_gin.samplers.latents import RoundTrip
from idode_gin.samplers.ode import Encoded, ODESampler
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.trained import TrainedModel

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

    def seed_of(key):
        return jax.random.key_data(key)[-1].astype(float)

    def pixels_of(conditioning):
        return jnp.broadcast_to(conditioning[:, :1, None, None], (len(conditioning), *tiny.SHAPE))

    def round_trip_fn(model, params, batch, key, sampler):
        shape, index = batch["image"].shape, batch["index"]
        return RoundTrip(
            noise=jnp.full(shape, seed_of(key)),
            pixels=batch["image"],
            error=jnp.where(is_in(index, "not finite"), jnp.nan, 0.1 * (1 + index) + seed_of(key)),
            num_changed=index,
            num_evaluations=1 + index,
            success=~is_in(index, "encode"),
        )

    def encode_fn(model, params, batch, key, sampler):
        found = round_trip_fn(model, params, batch, key, sampler)
        noise = jnp.where(jnp.isfinite(found.error)[:, None, None, None], found.noise, jnp.nan)
        return Encoded(noise, found.num_evaluations, found.success)

    def decode_fn(model, params, batch, sampler):
        conditioning = batch["conditioning"]
        return Samples(
            pixels=jnp.round(pixels_of(conditioning)).astype(int),
            latent=pixels_of(conditioning),
            num_evaluations=jnp.round(conditioning[:, 0]).astype(int),
            success=~is_in(conditioning[:, 0], "decode"),
        )

    def sample_fn(model, params, batch, key, sampler):
        index = batch["index"]
        latent = seed_of(key) + batch["conditioning"][:, 0]
        latent = jnp.where(is_in(index, "not finite"), jnp.nan, latent)
        return Samples(
            pixels=jnp.broadcast_to(index[:, None, None, None], (len(index), *tiny.SHAPE)),
            latent=jnp.broadcast_to(latent[:, None, None, None], (len(index), *tiny.SHAPE)),
            num_evaluations=3 + index,
            success=~is_in(index, "encode"),
            log_p=jnp.where(is_in(index, "no density"), -jnp.inf, -1.5 * index),
        )

    monkeypatch.setattr(DiffusionODE, "round_trip_fn", round_trip_fn)
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
    with pytest.raises(checks.NonFiniteError, match=f"{pairs} of 4 pairs have no result"):
        run(Interpolator, tmp_path, pairs=((3, 9), (16, 1), (4, 4), (7, 8)), num_points=POINTS)


@pytest.mark.parametrize(
    ("changes", "failed"), [({"encode": [1, 8]}, 2), ({"encode": [1], "not finite": [2, 8]}, 3)]
)
def test_an_encoded_image_counts_if_it_is_finite_and_arrived(solves, tmp_path, changes, failed):
    solves |= changes
    with pytest.raises(checks.NonFiniteError, match=f"{failed} of 4 images have no result"):
        run(Encoder, tmp_path, indices=(1, 2, 5, 8))


def test_a_sample_counts_if_it_is_finite_and_arrived_with_its_density(solves, tmp_path):
    solves |= {"encode": [0], "not finite": [2], "no density": [4]}
    with pytest.raises(checks.NonFiniteError, match="3 of 6 samples have no result"):
        run(Sampler, tmp_path, method=METHOD, num_samples=6, return_log_prob=True)


def mean_of(values):
    """Mean and standard error, as a summary has them."""
    values = np.asarray(values, float).ravel()
    deviation = np.sqrt(np.sum((values - values.mean()) ** 2) / (values.size - 1))
    return {"mean": values.mean(), "stderr": deviation / np.sqrt(values.size)}


def assert_figures(found, expected):
    """Compare entries of a summary, those of dictionaries in it likewise."""
    for name, value in expected.items():
        assert found[name] == (value if isinstance(value, str) else pytest.approx(value)), name


USED = {"checkpoint": "made", "step": 3, "parameters": "ema", "levels": tiny.LEVELS, "seed": 3}
"""Entries of every summary of a run with seed 3."""


def assert_dataset(summary):
    known = tiny.split(number=interrupted.NUMBER).facts()
    assert {name: summary[name] for name in known} == known


def arrays_of(folder, name):
    with np.load(folder / name) as found:
        return dict(found)


def test_figures_of_encoded_images(solves, tmp_path):
    summary = run(Encoder, tmp_path, indices=(5, 2, 8), seed=3)
    index = np.array([5, 2, 8])
    found = arrays_of(tmp_path, "latents.npz")
    np.testing.assert_array_equal(found["index"], index)
    np.testing.assert_allclose(found["error"], 3.1 + 0.1 * index, rtol=1e-6)
    np.testing.assert_array_equal(found["changed"], index)
    np.testing.assert_array_equal(found["nfe"], 1 + index)
    np.testing.assert_array_equal(found["noise"], np.full((3, *tiny.SHAPE), 3.0))
    expected = {"num_encoded": 3, "changed_pixels": 15, "noise_mean_square": 9.0, "nfe": 6.0}
    assert_figures(summary, expected | USED)
    assert_dataset(summary)
    assert_figures(summary["round_trip"], {**mean_of(3.1 + 0.1 * index), "max": 3.9})


def test_figures_of_pairs(solves, tmp_path):
    """Network evaluations are those of both encodings and of every image in between."""
    pairs = ((3, 9), (16, 1))
    summary = run(Interpolator, tmp_path, pairs=pairs, num_points=POINTS, seed=3)
    found = arrays_of(tmp_path, "interpolation.npz")
    np.testing.assert_array_equal(found["pairs"], pairs)
    errors = 3.1 + 0.1 * np.asarray(pairs)
    np.testing.assert_allclose(found["error"], errors, rtol=1e-6)
    evaluations = [4 + 10 + 3 + 5 + 7 + 9, 17 + 2 + 16 + 11 + 6 + 1]
    np.testing.assert_array_equal(found["nfe"], evaluations)
    assert_figures(summary, {"nfe": np.mean(evaluations), "num_points": POINTS, **USED})
    assert_dataset(summary)
    assert summary["pairs"] == [[3, 9], [16, 1]]
    assert_figures(summary["round_trip"], {**mean_of(errors), "max": 4.7})


def test_an_image_of_several_pairs_counts_once(solves, tmp_path):
    summary = run(Interpolator, tmp_path, pairs=((3, 9), (3, 1), (9, 3)), num_points=POINTS, seed=3)
    errors = 3.1 + 0.1 * np.array([1, 3, 9])
    assert_figures(summary["round_trip"], {**mean_of(errors), "max": 4.0})


def test_figures_of_samples(solves, tmp_path):
    fields = {"num_samples": 6, "return_log_prob": True, "seed": 3, "conditioning": (0.25,)}
    summary = run(Sampler, tmp_path, method=METHOD, **fields)
    found, index = arrays_of(tmp_path, "samples.npz"), np.arange(6)
    np.testing.assert_array_equal(found["levels"][:, 0, 0, 0], index)
    np.testing.assert_array_equal(found["latent"], np.full((6, *tiny.SHAPE), 3.25))
    np.testing.assert_array_equal(found["log_p"], -1.5 * index)
    assert_figures(summary, {"num_samples": 6, "nfe": 5.5, "sampler": "ODESampler", **USED})
    assert summary["trained_on"] == interrupted.TRAINED_ON
    assert summary["image_shape"] == list(tiny.SHAPE)
    assert_figures(summary["log_p"], mean_of(-1.5 * index))


def test_pictures_have_the_original_images_first(solves, tmp_path, monkeypatch):
    """Those of a pair at the ends of its row; those that are encoded above their round trips."""
    shown, encode = [], DiffusionODE.round_trip_fn

    def inverted(*arguments):
        found = encode(*arguments)
        return found._replace(pixels=tiny.LEVELS - 1 - found.pixels.astype(int))

    monkeypatch.setattr(plots, "image_grid", lambda images, *_: shown.append(images))
    monkeypatch.setattr(DiffusionODE, "round_trip_fn", inverted)
    images, pairs = tiny.split(number=interrupted.NUMBER).images, ((3, 9), (16, 1))
    run(Interpolator, tmp_path / "a", pairs=pairs, num_points=POINTS)
    rows = shown[0].reshape(2, POINTS + 2, *tiny.SHAPE)
    np.testing.assert_array_equal(rows[:, [0, -1]], images[np.asarray(pairs)])
    found = arrays_of(tmp_path / "a", "interpolation.npz")
    np.testing.assert_array_equal(rows[:, 1:-1], found["levels"])
    run(Encoder, tmp_path / "b", indices=(5, 2, 8), grid_images=2)
    originals = images[[5, 2]]
    expected = np.concatenate([originals, tiny.LEVELS - 1 - originals])
    np.testing.assert_array_equal(shown[1], expected)


def test_there_must_be_pairs():
    with pytest.raises(ValueError, match=r"`pairs` must be pairs of places.*got \(\)"):
        Interpolator(output_dir="unused", checkpoint_path="unused", pairs=())


# The same through a model in memory.


@pytest.fixture
def trained():
    model = tiny.model(image_shape=tiny.SHAPE)
    return TrainedModel(
        model=model,
        params=model.init(jax.random.key(0), tiny.SHAPE),
        config={},
        step=3,
        path=pathlib.Path("made"),
        partitioner=PjitPartitioner(),
    )


IMAGES = np.zeros((4, *tiny.SHAPE), int)
FOUR = np.array([[3.0], [9.0], [16.0], [1.0]], np.float32)


def test_images_in_memory_have_their_seed_index_and_conditioning(solves, trained):
    drawn = trained.sample(3, 5, method=METHOD, first=2)
    np.testing.assert_array_equal(drawn[:, 0, 0, 0], [2, 3, 4])
    decoded = trained.decode(IMAGES, method=METHOD, conditioning=FOUR)
    np.testing.assert_array_equal(decoded[:, 0, 0, 0], FOUR[:, 0])
    noise = trained.encode(IMAGES, 5, method=METHOD)
    np.testing.assert_array_equal(noise, np.full(noise.shape, 5.0))


@pytest.mark.parametrize(
    ("changes", "call", "failed"),
    [
        ({"encode": [1]}, lambda it: it.sample(4, method=METHOD), "1 of 4 samples"),
        ({"not finite": [0, 2]}, lambda it: it.sample(4, method=METHOD), "2 of 4 samples"),
        ({"encode": [3]}, lambda it: it.encode(IMAGES, method=METHOD), "1 of 4 images"),
        ({"not finite": [1, 3]}, lambda it: it.encode(IMAGES, method=METHOD), "2 of 4 images"),
        (
            {"encode": [7]},
            lambda it: it.encode(IMAGES, method=METHOD, index=np.arange(5, 9)),
            "1 of 4 images",
        ),
        (
            {"decode": [9.0]},
            lambda it: it.decode(IMAGES, method=METHOD, conditioning=FOUR),
            "1 of 4 latents",
        ),
    ],
)
def test_solves_in_memory_that_do_not_arrive_raise(solves, trained, changes, call, failed):
    solves |= changes
    with pytest.raises(checks.NonFiniteError, match=f"{failed} have no result"):
        call(trained)


@pytest.mark.parametrize(
    ("loop", "name"),
    [
        *((Sampler, name) for name in ("num_samples", "batch_size", "grid_images", "solve_size")),
        *((Encoder, name) for name in ("grid_images", "solve_size")),
        *((Interpolator, name) for name in ("num_points", "solve_size")),
    ],
)
def test_numbers_out_of_range(loop, name):
    with pytest.raises(ValueError, match=name):
        loop(output_dir="unused", checkpoint_path="unused", **{name: 0})
