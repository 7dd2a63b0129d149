"""A model of classes draws, encodes and scores images of the class that is named."""

import dataclasses
import pathlib

import classes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import idode_gin
from idode_gin.checkpoints import saving
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import loading
from idode_gin.generation.encoder import Encoder
from idode_gin.generation.interpolator import Interpolator
from idode_gin.generation.sampler import Sampler
from idode_gin.runs import run_inputs
from idode_gin.samplers.ode import ODESampler
from idode_gin.solvers.fixed_grid import FixedGrid

FACTS = {"class_names": list(classes.NAMES)}
GRID = FixedGrid(steps=12)
METHOD = ODESampler(solver=GRID)
SCORED = {"bound": "uniform", "solver": GRID, "tolerance": None}


@pytest.fixture(autouse=True)
def checkpoint(monkeypatch):
    def load_params(model, shape, *_):
        return saving.RestoredParams(
            model.init(jax.random.key(0), shape), 3, pathlib.Path("c"), FACTS
        )

    monkeypatch.setattr(run_inputs, "load_params", load_params)
    monkeypatch.setattr(saving, "find", pathlib.Path)
    monkeypatch.setattr(loading, "load_split", lambda config: classes.unlabelled())
    monkeypatch.setattr(loading, "load_labels", lambda config, count: classes.labels())
    monkeypatch.setattr(loading, "class_names", lambda config: classes.NAMES)


def draw(folder, model=None, **changes):
    fields = {"output_dir": str(folder), "checkpoint_path": "made", "method": METHOD}
    made = Sampler(**(fields | {"num_samples": 24, "batch_size": 10} | changes))
    summary = made.run(model or classes.model())
    with np.load(folder / "samples.npz") as found:
        return summary, dict(found)


@pytest.fixture(scope="module")
def trained():
    model = classes.model()
    return idode_gin.TrainedModel(
        model=model,
        params=model.init(jax.random.key(0), tiny.SHAPE),
        config={},
        step=3,
        path=pathlib.Path("made"),
        partitioner=PjitPartitioner(),
    )


@pytest.fixture(scope="module")
def plain():
    model = tiny.model(image_shape=tiny.SHAPE)
    params = model.init(jax.random.key(0), tiny.SHAPE)
    place = {
        "config": {},
        "step": 3,
        "path": pathlib.Path("made"),
        "partitioner": PjitPartitioner(),
    }
    return idode_gin.TrainedModel(model=model, params=params, **place)


def test_samples_are_of_their_classes_all_in_turn(tmp_path, capsys):
    summary, found = draw(tmp_path / "all")
    assert "\nClasses: 0 dark, 1 grey, 2 light.\n" in capsys.readouterr().out
    assert tuple(summary["class_names"]) == tuple(found["class_names"]) == classes.NAMES
    np.testing.assert_array_equal(found["label"], classes.labels(24))
    assert summary["label"] is None
    # Image i of one class has the noise of image i of another: classes differ by their means.
    _, last = draw(tmp_path / "last", label=2)
    np.testing.assert_array_equal(last["label"], np.full(24, 2))
    np.testing.assert_array_equal(last["levels"][2::3], found["levels"][2::3])
    shift = (last["levels"].astype(int) - found["levels"])[0::3].mean()
    assert shift == pytest.approx((classes.MEANS[2] - classes.MEANS[0]) * tiny.LEVELS / 2, abs=0.3)


def test_python_draws_what_the_program_draws(tmp_path, trained):
    _, found = draw(tmp_path / "all")
    np.testing.assert_array_equal(trained.sample(24, method=METHOD), found["levels"])
    np.testing.assert_array_equal(trained.sample(5, first=4, method=METHOD), found["levels"][4:9])
    _, found = draw(tmp_path / "one", label=1)
    np.testing.assert_array_equal(trained.sample(24, method=METHOD, label=1), found["levels"])


def test_scores_are_of_the_class_that_is_named(trained):
    split = classes.split()
    by_class = np.stack([trained.log_prob(split.images, label=c, **SCORED) for c in range(3)], 1)
    own = trained.bits_per_dim(split.images, label=split.labels, **SCORED)
    rows = np.arange(len(own.log_prob))
    np.testing.assert_array_equal(own.log_prob, by_class[rows, split.labels])
    assert abs((by_class.argmax(1) == split.labels).mean() - classes.exact_accuracy()) < 0.15
    weights = split.conditioning_of(rows)
    as_weights = trained.log_prob(split.images, conditioning=weights, **SCORED)
    np.testing.assert_array_equal(as_weights, own.log_prob)


def test_an_encoded_image_is_decoded_with_its_class(trained):
    split = classes.split(6)
    noise = trained.encode(split.images, label=split.labels, method=METHOD)
    found = trained.decode(noise, label=split.labels, method=METHOD)
    np.testing.assert_array_equal(found, split.images)
    moved = trained.decode(noise, label=2, method=METHOD).astype(int) - split.images
    assert moved[0].mean() > moved[1].mean() > moved[2].mean() == 0


@pytest.mark.parametrize("call", ["sample", "encode", "decode", "log_prob"])
def test_a_solver_is_not_that_of_the_call_before(trained, call):
    """Programs are kept in memory: each solver has its own."""
    split = classes.split(6)
    calls = {
        "sample": lambda it, solver: it.sample(6, method=ODESampler(solver=solver)),
        "encode": lambda it, solver: it.encode(
            split.images, label=split.labels, method=ODESampler(solver=solver)
        ),
        "decode": lambda it, solver: it.decode(
            np.ones(split.images.shape), label=split.labels, method=ODESampler(solver=solver)
        ),
        "log_prob": lambda it, solver: it.log_prob(
            split.images, label=split.labels, **(SCORED | {"solver": solver})
        ),
    }
    before, coarse = calls[call](trained, GRID), FixedGrid(steps=1)
    found = calls[call](trained, coarse)
    np.testing.assert_array_equal(found, calls[call](dataclasses.replace(trained), coarse))
    assert not np.array_equal(found, before)


def test_programs_encode_and_interpolate_with_the_classes_of_the_images(tmp_path, trained):
    split, given = classes.split(), {"checkpoint_path": "made", "method": METHOD}
    Encoder(output_dir=str(tmp_path / "e"), indices=(4, 2), **given).run(
        classes.model(), tiny.config()
    )
    with np.load(tmp_path / "e" / "latents.npz") as found:
        images, of = split.images[[4, 2]], split.labels[[4, 2]]
        noise = trained.encode(images, label=of, index=np.array([4, 2]), method=METHOD)
        np.testing.assert_array_equal(found["noise"], noise)
        np.testing.assert_array_equal(found["levels"], images)
    Interpolator(output_dir=str(tmp_path / "i"), pairs=((0, 2),), num_points=3, **given).run(
        classes.model(), tiny.config(1)
    )
    with np.load(tmp_path / "i" / "interpolation.npz") as found:
        np.testing.assert_array_equal(found["levels"][0, [0, 2]], split.images[[0, 2]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "must give a class for each image.* got no labels"),
        ({"conditioning": np.zeros((60, 1))}, "got no labels"),
        ({"label": 3}, r"labels in 0..2.*got 3 for image 0"),
        ({"label": np.arange(60) - 1}, "got -1 for image 0"),
        ({"label": np.array(1.0)}, r"one integer label for each of 60 images, got float64"),
        ({"label": np.zeros(59, int)}, r"got int64 \[59\]"),
        ({"label": 1, "conditioning": np.zeros((60, 4))}, r"must be \[60, 1\]"),
    ],
)
def test_a_model_of_classes_refuses_what_is_no_class(trained, given, message):
    images = classes.unlabelled().images
    with pytest.raises(ValueError, match=message):
        trained.bits_per_dim(images, **given)
    with pytest.raises(ValueError, match=message):
        trained.encode(images, **given)
    with pytest.raises(ValueError, match=message):
        trained.decode(np.zeros(images.shape), **given)
    if "label" in given:
        with pytest.raises(ValueError, match=message):
            trained.sample(60, **given)


def test_a_model_without_classes_takes_no_label(tmp_path, plain):
    message = "must be None for a model that is not conditioned on classes, got 0"
    images = classes.unlabelled().images
    for use in (
        lambda: plain.log_prob(images, label=0),
        lambda: plain.sample(2, label=0),
        lambda: plain.encode(images, label=0),
        lambda: draw(tmp_path, plain.model, label=0),
    ):
        with pytest.raises(ValueError, match=message):
            use()


def test_a_program_refuses_a_label_that_is_no_class(tmp_path):
    with pytest.raises(ValueError, match=r"0..2.*3 classes \(0 dark, 1 grey, 2 light\), got 3"):
        draw(tmp_path, label=3)


def test_the_field_of_a_model_of_classes_needs_their_weights(trained):
    z, gamma = jnp.zeros((2, *tiny.SHAPE)), jnp.zeros(2)
    with pytest.raises(ValueError, match=r"needs `conditioning` \[B, 4\].*args=\(conditioning,\)"):
        trained.field(z, gamma)
    rows = classes.split(3).conditioning_of(np.array([0, 2]))
    found = np.asarray(trained.field(z, gamma, jnp.asarray(rows)))
    assert not np.allclose(found[0], found[1])
