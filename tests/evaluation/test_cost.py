"""The cost of an evaluation that dry runs and the end of training tell."""

import dataclasses
import json

import pytest

from idode_gin.dequantizers.uniform import Uniform
from idode_gin.evaluation import cost
from idode_gin.interop.official_evaluation import OfficialParity
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.solvers import adams, adaptive, divergence, fixed_grid

PILOTED = ODELikelihood(dequantizer=Uniform())
SUMMARY = {
    "images_per_second": 60.0,
    "flops_per_step": 6e9,
    "seconds": {"train": 500.0},
    "eval_data": {"num_images": 10_000},
}


@pytest.mark.parametrize(
    ("estimator", "evaluations"),
    [
        (PILOTED, 100),
        (ODELikelihood(dequantizer=Uniform(), solver=adams.Adams(steps=20), num_repeats=3), 120),
        (ODELikelihood(dequantizer=Uniform(), solver=fixed_grid.FixedGrid(steps=10)), 80),
        (ODELikelihood(dequantizer=Uniform(), num_importance=2), 200),
        (dataclasses.replace(PILOTED, divergence=divergence.Hutchinson(num_probes=3)), 200),
        (dataclasses.replace(PILOTED, divergence=divergence.Exact()), 50 * 49),
    ],
)
def test_evaluations_of_each_bound_are_added(estimator, evaluations):
    text = cost.in_words({"variational_bound": 64}, {"own": estimator}, 0, 1e6, None, {}, dims=48)
    assert f": {64 + evaluations:,} network evaluations, " in text
    assert f"variational_bound 64, own {evaluations:,}; an evaluation counts again" in text
    assert "Pilots" not in text
    assert "Adaptive" not in text
    assert "Time" not in text
    assert cost.QUICK_FILE in text


@pytest.mark.parametrize(("steps", "is_offered"), [(4, False), (5, True)])
def test_a_quicker_evaluation_is_offered_if_there_is_one(steps, is_offered):
    assert cost.QUICK == 2 * 4
    own = dataclasses.replace(PILOTED, solver=adams.Adams(steps=steps))
    text = cost.in_words({}, {"own": own}, 0, 1e6, None, {}, dims=48)
    assert (cost.QUICK_FILE in text) == is_offered


def test_adaptive_steps_are_counted_as_measured():
    """More than a pilot's: 8x8 digits took 278 evaluations at 1e-5, 32x32 patches 440."""
    own = dataclasses.replace(PILOTED, solver=adaptive.DormandPrince(), num_repeats=2)
    bounds = {"own": own, "piloted": PILOTED}
    text = cost.in_words({}, bounds, 0, 1e6, None, {}, dims=48)
    assert "own 1,760, piloted 100;" in text  # 440 x 2 with the trace x 2 repeats
    assert "Adaptive or unknown steps (own): an adaptive number depends on the image" in text
    assert "440 evaluations are assumed for a solve" in text
    text = cost.in_words({}, {"piloted": PILOTED}, 0, 1e6, None, {}, dims=48)
    assert "Adaptive" not in text


@pytest.mark.parametrize(
    ("importance", "repeats", "own", "added"),
    [(1, 1, 100, 500), (1, 4, 400, 500), (3, 1, 300, 300), (3, 4, 1200, 300)],
)
def test_a_parity_adds_its_own_solves(importance, repeats, own, added):
    """Five for K = 1, else one repeat of K; none when images are classified."""
    estimator = dataclasses.replace(PILOTED, num_importance=importance, num_repeats=repeats)
    given = {"dims": 48, "classified": ("own", 10), "parity": OfficialParity()}
    text = cost.in_words({"bound": 8}, {"own": estimator}, 0, 1e6, None, {}, **given)
    assert f"image: {8 + own + added:,} network evaluations" in text
    assert f"bound 8, own {own:,}, parity {added};" in text
    assert f"Each image that is classified: {10 * own:,} more." in text


def test_time_is_that_of_the_training(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    place, facts = tmp_path / "checkpoint_3", {"batch_size": 16}
    speed = 6e9 * 60 / 16
    text = cost.in_words({"bound": 8}, {}, 16, speed / 80, place, facts, dims=48)
    assert text.endswith("Time at the speed of training: 1.7 min for 1,000 images.\n")  # 8,000 / 80
    text = cost.in_words({"bound": 8}, {"own": PILOTED}, 16, speed / 80, place, facts, dims=48)
    assert "Pilots, once: 16,384 network evaluations." in text
    assert "22 min for 1,000 images, and 3.4 min for the pilots." in text
    draws = ODELikelihood(dequantizer=Uniform(), num_importance=2, num_repeats=3)
    text = cost.in_words({"bound": 8}, {"own": draws}, 16, speed / 80, place, facts, dims=48)
    assert "Pilots, once: 16,384 network evaluations." in text  # of the first draw alone
    assert "Time" not in cost.in_words({"bound": 8}, {}, 16, 1e6, place, {}, dims=48)
    assert "Time" not in cost.in_words({"bound": 8}, {}, 16, 1e6, tmp_path / "a/b", facts, dims=48)


def test_images_that_are_classified_cost_a_score_for_every_class(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    place, facts = tmp_path / "checkpoint_3", {"batch_size": 16}
    speed, by = 6e9 * 60 / 16, {"dims": 48, "classified": ("bound", 10)}
    text = cost.in_words({"bound": 8}, {}, 0, speed / 80, place, facts, **by)
    assert "Each image that is classified: 80 more." in text
    assert "training: 1.7 min for 1,000 images, and 17 min to classify 1,000." in text


def test_an_evaluation_that_costs_more_than_the_training_is_told(tmp_path):
    def told(**changes):
        (tmp_path / "summary.json").write_text(json.dumps(SUMMARY | changes))
        return cost.compared_with_training(tmp_path)

    full = 10_000 * (64 + 3 * 100) / 3 / 60
    assert f"scores 10,000 under all bounds, in about {full / 3600:.1f} h, longer" in told()
    # 1,000 x 8 / (3 x 60)
    assert "scores 1,000 images under the variational bound, in about 45 s. " in told()
    assert "90 images under the variational bound, in about 4 s. " in told(
        eval_data={"num_images": 90}, seconds={"train": 9}
    )
    assert told(seconds={"train": full + 1}) == ""
    classes = {"num_images": 10_000, "num_classes": 10}
    full += 1000 * 64 * 10 / 3 / 60
    assert f"under all bounds, in about {full / 3600:.1f} h" in told(eval_data=classes)
    assert "variational bound, in about 8.1 min. " in told(eval_data=classes)  # 88,000 / 180
    for lacking in ({"eval_data": None}, {"images_per_second": None}, {"images_per_second": 0}):
        assert told(**lacking) == ""
    (tmp_path / "summary.json").write_text("[]")
    assert cost.compared_with_training(tmp_path) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (59, "59 s"), (90, "1.5 min"), (700, "12 min"), (9e3, "2.5 h")],
)
def test_durations_are_rough(seconds, text):
    assert cost.roughly(seconds) == text
