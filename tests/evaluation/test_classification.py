"""Classification by likelihood: exact where the density of each class is known."""

import dataclasses
import json

import classes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from idode_gin import checks
from idode_gin.checkpoints import saving
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.evaluation import classification, scores
from idode_gin.evaluation.classification import Classification
from idode_gin.evaluation.evaluator import Evaluator
from idode_gin.feed import batches, loading
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.losses.bound import VariationalBound
from idode_gin.runs import run_inputs
from idode_gin.solvers.fixed_grid import FixedGrid

NUMBER = 60
TN = ODELikelihood(dequantizer=TruncatedNormal(), solver=FixedGrid(steps=12))
BOUND = VariationalBound(num_times=8)


@pytest.fixture(autouse=True)
def inputs(monkeypatch):
    """Images of classes without seqio, and parameters without a checkpoint."""

    def load_params(model, shape, *_):
        params = model.init(jax.random.key(0), shape)
        return saving.RestoredParams(params, 3, "checkpoint_3", {})

    monkeypatch.setattr(loading, "load_split", lambda config: classes.unlabelled(NUMBER))
    monkeypatch.setattr(loading, "load_labels", lambda config, count: classes.labels(NUMBER))
    monkeypatch.setattr(loading, "class_names", lambda config: classes.NAMES)
    monkeypatch.setattr(run_inputs, "load_params", load_params)
    monkeypatch.setattr(saving, "find", lambda path: path)


def evaluate(folder, model=None, setting=Classification(by="tn"), **changes):  # noqa: B008
    made = Evaluator(
        output_dir=str(folder),
        checkpoint_path="made",
        likelihoods={"tn": TN},
        variational_bound=BOUND,
        classification=setting,
        histogram_split=None,
        **changes,
    )
    summary = made.run(model or classes.model(), tiny.config(32))
    assert json.loads((folder / "summary.json").read_text()) == summary
    with np.load(folder / "results.npz") as rows:
        return summary, dict(rows)


@pytest.fixture(scope="module")
def nats():
    """Scores of all classes `[N, C]`, and of each image's own `[N]`, by bound."""
    model, split = classes.model(), classes.split(NUMBER)
    found = {}
    for name, score in (
        ("tn", scores.of_likelihood(model, TN, "tn", 0)),
        ("variational_bound", scores.of_bound(model, VariationalBound(num_times=64), 0)),
    ):
        (batch,) = batches.eval_batches(split, NUMBER)
        every = classification.of_all_classes(score, classes.COUNT)
        found[name] = jax.jit(lambda b, e=every, s=score: (e({}, b)["nats"], s({}, b)["nats"]))(
            batch
        )
    return {name: [np.asarray(each) for each in pair] for name, pair in found.items()}


@pytest.mark.parametrize("name", ["tn", "variational_bound"])
def test_the_score_of_the_own_class_is_the_image_s(nats, name):
    """The same noise and probes: only the class differs."""
    every, own = nats[name]
    np.testing.assert_allclose(every[np.arange(NUMBER), classes.labels(NUMBER)], own, rtol=1e-5)


@pytest.mark.parametrize("name", ["tn", "variational_bound"])
def test_differences_between_classes_are_those_of_the_densities(nats, name):
    """Of the quantized image, to what noise within a bin moves them."""
    exact = classes.exact_log_p(classes.split(NUMBER).images, ends_in_prior=name == "tn")
    found = -nats[name][0]
    differences = (found - found[:, :1]) - (exact - exact[:, :1])
    noise = differences[:, 1:].std(axis=0, ddof=1)
    assert (np.abs(differences[:, 1:].mean(axis=0)) < 3 * noise / NUMBER**0.5).all()
    assert ((exact - exact[:, :1])[:, 1:].std(axis=0) > 4 * noise).all()


def test_the_accuracy_is_that_of_the_exact_posterior(tmp_path, capsys):
    summary, rows = evaluate(tmp_path)
    assert "\nClasses: 0 dark, 1 grey, 2 light.\n" in capsys.readouterr().out
    assert summary["class_names"] == list(classes.NAMES)
    found = summary["classification"]
    assert (found["by"], found["num_images"], found["num_classes"]) == ("tn", NUMBER, 3)
    predicted = rows["classification/predicted"]
    right = predicted == classes.labels(NUMBER)
    np.testing.assert_array_equal(rows["classification/label"], classes.labels(NUMBER))
    assert found["accuracy"] == right.mean()
    assert found["stderr"] == pytest.approx(right.std(ddof=1) / NUMBER**0.5)
    assert abs(found["accuracy"] - classes.exact_accuracy()) < 3 * found["stderr"]
    best = np.sort(exact := classes.exact_log_p(classes.split(NUMBER).images), axis=1)
    is_clear = best[:, -1] - best[:, -2] > 1
    assert is_clear.mean() > 0.6
    np.testing.assert_array_equal(predicted[is_clear], exact.argmax(axis=1)[is_clear])
    line = (tmp_path / "table.txt").read_text().splitlines()[-1]
    assert line.startswith(f"classification by tn: accuracy {found['accuracy']:.4f} ± ")
    assert line.endswith("on 60 images, 3 classes")
    assert {"num_classes", "labels_sha256"} <= summary.keys()


def test_a_network_that_ignores_the_label_has_the_accuracy_of_chance(tmp_path):
    """All classes are equally likely, bit for bit, and the first of them is named."""
    model = classes.model(ignoring=0.1)
    summary, rows = evaluate(tmp_path, model, Classification(by="variational_bound"))
    assert (rows["classification/predicted"] == 0).all()
    assert summary["classification"]["accuracy"] == pytest.approx(1 / 3)


def test_some_images_spread_over_the_split(tmp_path):
    summary, rows = evaluate(tmp_path, setting=Classification(by="tn", num_images=7))
    predicted = rows["classification/predicted"]
    places = np.flatnonzero(predicted >= 0)
    np.testing.assert_array_equal(places, np.linspace(0, NUMBER - 1, 7).round())
    assert summary["classification"]["num_images"] == 7
    right = (predicted == classes.labels(NUMBER))[places]
    assert summary["classification"]["accuracy"] == right.mean()
    assert Classification(num_images=99).images(classes.split(NUMBER)).tolist() == [*range(NUMBER)]


def test_a_prior_adds_its_logarithm():
    log_p = np.array([[-3.0, -1.0, -2.0]])
    assert Classification().posterior(log_p) is log_p
    prior = (0.5, 0.0, 0.5)
    found = Classification(prior=prior).posterior(log_p)
    np.testing.assert_allclose(found, [[-3 + np.log(0.5), -np.inf, -2 + np.log(0.5)]])


def test_a_model_of_classes_need_not_classify(tmp_path):
    summary, rows = evaluate(tmp_path, setting=None)
    assert "classification" not in summary
    assert not any("classification" in name for name in rows)


def test_a_model_without_labels_is_not_classified(tmp_path):
    summary, rows = evaluate(tmp_path, tiny.model(image_shape=tiny.SHAPE))
    assert not {"classification", "labels_sha256"} & summary.keys()
    assert not any("classification" in name for name in rows)


def test_scores_that_are_not_finite_are_named(tmp_path, monkeypatch):
    def broken(compute, num_classes):
        found = classification_of(compute, num_classes)
        return lambda params, batch: {
            **(rows := found(params, batch)),
            "nats": rows["nats"] + np.nan,
        }

    classification_of = classification.of_all_classes
    monkeypatch.setattr(classification, "of_all_classes", broken)
    with pytest.raises(checks.NonFiniteError, match="classification by tn: 60 of 60 images"):
        evaluate(tmp_path)


@pytest.mark.parametrize("name", ["nats", "success"])
def test_one_class_of_one_image_without_a_score_is_an_error(tmp_path, monkeypatch, name):
    """Its other classes have one, as all classes of the other images."""

    def broken(compute, num_classes):
        found = classification_of(compute, num_classes)

        def run(params, batch):
            rows = found(params, batch)
            is_it = (batch["index"][:, None] == 7) & (jnp.arange(num_classes) == 1)
            missing = {"nats": jnp.nan, "success": False}[name]
            return {**rows, name: jnp.where(is_it, missing, rows[name])}

        return run

    classification_of = classification.of_all_classes
    monkeypatch.setattr(classification, "of_all_classes", broken)
    with pytest.raises(checks.NonFiniteError, match="by tn: 1 of 60 images .* at place 7"):
        evaluate(tmp_path)


def test_classes_are_scored_with_the_noise_of_the_evaluations_seed(tmp_path, monkeypatch):
    seen, check = {}, scores.check_scores

    def checked(name, found, places):
        seen[name] = found["bpd"]
        check(name, found, places)

    monkeypatch.setattr(scores, "check_scores", checked)
    evaluate(tmp_path, seed=5)
    model, (batch,) = classes.model(), batches.eval_batches(classes.split(NUMBER), NUMBER)

    def sums(seed):
        score = scores.of_likelihood(model, TN, "tn", seed)
        every = classification.of_all_classes(score, classes.COUNT)
        return jax.jit(lambda b: every({}, b)["nats"].sum(axis=1))(batch)

    found = seen["classification by tn"]
    np.testing.assert_allclose(found, sums(5), rtol=1e-5)
    assert np.all(np.abs(found / sums(0) - 1) > 1e-5)


def test_noise_by_pixels_is_that_of_every_class(tmp_path, monkeypatch):
    """The same image at two places of the split has the same scores."""
    seen, split = {}, classes.unlabelled(NUMBER)
    split.images[7] = split.images[4]
    monkeypatch.setattr(loading, "load_split", lambda config: split)
    monkeypatch.setattr(scores, "check_scores", lambda name, found, _: seen.update({name: found}))
    evaluate(tmp_path, noise_by_pixels=True)
    for name in ("classification by tn", "tn"):
        assert seen[name]["bpd"][4] == pytest.approx(seen[name]["bpd"][7], rel=1e-6), name
        assert seen[name]["bpd"][4] != pytest.approx(seen[name]["bpd"][5], rel=1e-6), name


@pytest.mark.parametrize("size", [0, 1, 3])
def test_every_class_keeps_the_conditioning_of_the_image(size):
    """Of any size, before the numbers of the classes; `success` is True where there is none."""
    rows = np.random.default_rng(0).normal(size=(2, size + classes.COUNT)).astype(np.float32)
    weights = 2.0 ** np.arange(size + classes.COUNT)

    def compute(params, batch):
        return {"nats": batch["conditioning"] @ weights}

    found = classification.of_all_classes(compute, classes.COUNT)({}, {"conditioning": rows})
    expected = rows[:, :size] @ weights[:size, None] + weights[size:]
    np.testing.assert_allclose(found["nats"], expected, rtol=1e-6)
    assert found["success"].tolist() == [[True] * classes.COUNT] * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classification(num_images=0), "`num_images` must be greater than zero"),
        (lambda: Classification(prior=(0.5, 0.6)), "sum to 1, got"),
        (lambda: Classification(prior=(1.5, -0.5)), "probabilities"),
        (lambda: Classification(prior=(0.5, 0.5)).check_prior(3), "each of 3 classes, got 2"),
        (lambda: Classification(by="tm").check(["tn"]), "got 'tm'. Did you mean 'tn'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_evaluation_refuses_a_bound_that_it_does_not_score(tmp_path):
    with pytest.raises(ValueError, match="must be the name of a bound that is evaluated, got 'x'"):
        evaluate(tmp_path, setting=Classification(by="x"))
    with pytest.raises(ValueError, match="each of 3 classes"):
        evaluate(tmp_path, setting=dataclasses.replace(Classification(), prior=(1.0,)))
