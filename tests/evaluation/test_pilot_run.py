"""Pilots of an evaluation: their images and keys, and outcomes that are kept for a resumed one.

What a pilot measures is replaced; `tests/laws/test_pilot.py` is about that.
"""

import dataclasses
import functools
import shutil

import jax
import numpy as np
import pytest
import tiny

from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.dequantizers.uniform import Uniform
from idode_gin.evaluation import pilot_run, pixel_keys, scores
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot import Pilot, Report
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.solvers.spacings import Equal, Tabulated

TABLE = (0.0, 0.25, 0.5, 1.0)
REPORT = Report("Adams(steps=24)", 1e-3, 4e-4, -2e-4, 1e-5, 65, 5, 3e-4, TABLE, 1e-6)
FACTS = {"seed": 0, "dataset_sha256": "ab", "pilot.tolerance": "0.001"}
UNDECIDED = ODELikelihood(dequantizer=TruncatedNormal())
DECIDED = ODELikelihood(dequantizer=Uniform(), solver=FixedGrid(steps=2))
GIVEN_GRID = ODELikelihood(dequantizer=Uniform(), solver=Adams(steps=7, history=5))


@pytest.fixture
def measured(monkeypatch):
    """Replace the pilot; list the indices, key and likelihood of what it measures."""
    found = []

    def prepared(pilot, model, batch, key, estimator, watch, spread):
        def measure(params):
            found.append((np.asarray(batch["index"]), jax.random.key_data(key), estimator))
            if estimator.solver is not None:
                return estimator, REPORT._replace(spacing=None)
            spacing = Tabulated(table=TABLE)
            return dataclasses.replace(estimator, solver=Adams(steps=24, spacing=spacing)), REPORT

        return measure

    monkeypatch.setattr(Pilot, "prepared", prepared)
    return found


def chosen(folder, facts=None, likelihoods=None, number=20, num_images=5):
    """Run the pilot of a new process for the likelihoods; return what it chose."""
    key_of = functools.partial(scores.key_of, 3)
    pilot = Pilot(num_images=num_images)
    run = pilot_run.runner(pilot, tiny.model(), tiny.split(number=number), key_of, 32)
    kept = pilot_run.Kept(folder, facts or FACTS)
    params = tiny.model().init(jax.random.key(0), tiny.SHAPE)
    return pilot_run.choose(run, params, likelihoods or {"tn": UNDECIDED}, kept)


@pytest.mark.parametrize(("number", "index"), [(20, [0, 5, 10, 14, 19]), (3, [0, 1, 2])])
def test_images_are_spread_over_the_split_and_have_the_key_of_the_evaluation(
    measured, tmp_path, number, index
):
    chosen(tmp_path, number=number)
    ((found, key, _),) = measured
    np.testing.assert_array_equal(found, index)
    np.testing.assert_array_equal(key, jax.random.key_data(scores.key_of(3, "tn")))


def test_noise_by_pixels_is_that_of_the_pilot_too(measured, tmp_path):
    key_of, indexed = functools.partial(scores.key_of, 3), pixel_keys.indexed
    run = pilot_run.runner(Pilot(num_images=3), tiny.model(), tiny.split(), key_of, 32, indexed)
    run(tiny.model().init(jax.random.key(0), tiny.SHAPE), "tn", DECIDED)
    chosen = tiny.split().images[[0, 10, 19]]
    np.testing.assert_array_equal(measured[0][0], pixel_keys.hashes(jax.numpy.asarray(chosen)))


@pytest.mark.parametrize(("lanes", "size"), [(None, 4), (3, 3), (8, 4)])
def test_a_pilot_computes_no_more_images_together_than_the_evaluation(lanes, size):
    together = []

    def score(scale, batch):
        together.append(len(batch["index"]))
        return scale * batch["index"] ** 2

    estimator = dataclasses.replace(UNDECIDED, lanes=lanes)
    index = jax.numpy.arange(7)
    found = pilot_run.spread(4, estimator)(score)(2, {"index": index})
    np.testing.assert_array_equal(found, 2 * index**2)
    assert set(together) == {size}
    pilot_run.spread(8, UNDECIDED)(score)(2, {"index": index})
    assert together[-1] == 7


@pytest.mark.parametrize("given", [DECIDED, GIVEN_GRID])
def test_every_likelihood_has_its_own_solver_and_error(measured, tmp_path, given):
    found = chosen(tmp_path, likelihoods={"tn": UNDECIDED, "u": given})
    assert found["tn"].estimator.solver == Adams(steps=24, spacing=Tabulated(table=TABLE))
    assert found["tn"].error == {**REPORT._asdict(), "is_within": True}
    assert found["u"].estimator == given
    assert found["u"].error == {**REPORT._asdict(), "spacing": None, "is_within": True}
    assert [each[2] for each in measured] == [UNDECIDED, given]
    assert not np.array_equal(measured[0][1], measured[1][1])


def test_likelihoods_of_one_kind_are_measured_with_noise_of_their_own(measured, tmp_path):
    names = ("one", "two")
    chosen(tmp_path, likelihoods=dict.fromkeys(names, UNDECIDED))
    wanted = [jax.random.key_data(scores.key_of(3, name)) for name in names]
    np.testing.assert_array_equal([key for _, key, _ in measured], wanted)


def test_without_a_pilot_nothing_is_measured(tmp_path):
    kept = pilot_run.Kept(tmp_path, FACTS)
    assert pilot_run.choose(None, {}, {"u": DECIDED}, kept) == {"u": (DECIDED, None)}


@pytest.mark.parametrize("likelihoods", [{"tn": UNDECIDED}, {"tn": DECIDED}, {"tn": GIVEN_GRID}])
def test_an_outcome_is_kept_for_the_evaluation_that_resumes(
    measured, tmp_path, likelihoods, capsys
):
    first = chosen(tmp_path, likelihoods=likelihoods)
    assert "before the evaluation was interrupted" not in capsys.readouterr().out
    assert chosen(tmp_path, likelihoods=likelihoods) == first
    assert "Measured before the evaluation was interrupted." in capsys.readouterr().out
    assert len(measured) == 1


def test_a_grid_that_was_kept_may_be_of_equal_steps(measured, tmp_path, monkeypatch):
    plain = dataclasses.replace(UNDECIDED, solver=Adams(steps=16))
    report = REPORT._replace(spacing=None)
    monkeypatch.setattr(Pilot, "prepared", lambda *_: lambda params: (plain, report))
    for _ in range(2):
        found = chosen(tmp_path)["tn"]
        assert found.estimator.solver == Adams(steps=16, spacing=Equal())
        assert found.error["spacing"] is None


@pytest.mark.parametrize("name", FACTS)
def test_an_outcome_of_other_facts_is_not_taken(measured, tmp_path, name):
    chosen(tmp_path)
    for other in ({**FACTS, name: "other"}, {n: v for n, v in FACTS.items() if n != name}):
        chosen(tmp_path, facts=other)
    assert len(measured) == 3


def test_an_outcome_of_another_likelihood_or_a_damaged_one_is_not_taken(measured, tmp_path):
    chosen(tmp_path)
    chosen(tmp_path, likelihoods={"other": UNDECIDED})
    assert len(measured) == 2
    for content in ("", "{}", "[[1], 2]", "[1]"):
        for path in tmp_path.glob("pilot_*.json"):
            path.write_text(content)
        chosen(tmp_path)
    assert len(measured) == 6
    shutil.rmtree(tmp_path)
    chosen(tmp_path)
    assert len(measured) == 7
