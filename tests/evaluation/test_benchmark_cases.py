"""Cases that benchmarks measure: the learned gamma(t), and all of the conditioning."""

import dataclasses
import pathlib

import classes
import jax
import numpy as np
import pytest
import tiny

import idode_gin
from idode_gin.checkpoints import saving
from idode_gin.configs import building
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.runs import run_inputs
from idode_gin.schedules.time.learned_linear import LearnedLinear
from idode_gin.solvers.divergence import Hutchinson

# Mutants of the library are tested in a copy without benchmarks.
importance = pytest.importorskip("benchmarks.importance")
likelihood_case = pytest.importorskip("benchmarks.likelihood_case")

TIME = LearnedLinear(gamma_min=classes.GAMMA_MIN, gamma_max=classes.GAMMA_MAX)
LEARNED = {"gamma_min": classes.GAMMA_MIN - 1, "gamma_max": classes.GAMMA_MAX + 2}


def params_of(model):
    params = model.init(jax.random.key(0), tiny.SHAPE)
    ends = {
        name: np.full_like(params["time_schedule"]["ends"][name], LEARNED[name]) for name in LEARNED
    }
    return {**params, "time_schedule": {**params["time_schedule"], "ends": ends}}


@pytest.fixture
def case(monkeypatch):
    model = dataclasses.replace(classes.model(), time=TIME)
    restored = saving.RestoredParams(params_of(model), 3, pathlib.Path("c"), {})
    monkeypatch.setattr(building, "load_and_check", lambda *_: None)
    monkeypatch.setattr(building, "build", lambda _: {"model": model, "dataset_cfg": None})
    monkeypatch.setattr(run_inputs, "load", lambda *_: classes.split())
    monkeypatch.setattr(run_inputs, "load_params", lambda *_, **__: restored)
    return likelihood_case.load("any", "made", 4)


def test_a_case_spans_the_learned_gamma(case):
    low, high = case.span
    assert high == pytest.approx(LEARNED["gamma_max"])
    assert low == pytest.approx(likelihood_case.DEQUANTIZER.gamma_start(case.model.end))
    assert case.model.end.gamma_number == pytest.approx(LEARNED["gamma_min"])


def test_a_case_is_conditioned_on_the_classes(case):
    np.testing.assert_array_equal(case.conditioning[:, 1:], np.eye(3)[[0, 1, 2, 0]])
    output = jax.eval_shape(case.field().output, case.z, np.zeros(4, np.float32))
    assert output.shape == case.z.shape


def test_importance_takes_a_network_of_any_conditioning():
    model = classes.model(conditioning_size=2, ignoring=0.0)
    trained = idode_gin.TrainedModel(
        model=model,
        params=model.init(jax.random.key(0), tiny.SHAPE),
        partitioner=PjitPartitioner(),
    )
    images = classes.split(2).images
    found = importance.weights_and_log_dets(trained, images, 3, Hutchinson(num_probes=2))
    assert [each.shape for each in found] == [(3, 2), (3, 2, 2)]
