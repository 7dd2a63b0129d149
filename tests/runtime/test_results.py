"""Evaluation and sampling: which checkpoint, in what order, and stopping them."""

import json
import os
import signal

import jax
import pytest
import tiny

from idode_gin import checks, sampling
from idode_gin.evaluator import Evaluator
from idode_gin.losses.bound import VariationalBound
from idode_gin.runtime import checkpoints, loading, plots, preemption, train_state
from idode_gin.sampler import Sampler
from idode_gin.solvers.fixed_grid import FixedGrid


@pytest.fixture
def run_dir(tmp_path):
    """A run directory with the checkpoints of two steps."""
    transformation = tiny.trainer(tmp_path).optimizer.build()
    params = tiny.model().init(jax.random.key(0), tiny.SHAPE)
    folder = tmp_path / "run"
    with checkpoints.Checkpoints(folder, checkpoints.CheckpointConfig(), {}) as saved:
        for step in (2, 4):
            state = train_state.create(params, transformation, ["loss"])
            saved.save(state.__class__(**{**vars(state), "step": state.step + step}))
    return folder


def evaluate(path, output):
    evaluator = Evaluator(
        output_dir=str(output),
        checkpoint_path=str(path),
        likelihoods={},
        variational_bound=VariationalBound(num_times=2),
    )
    return evaluator.run(tiny.model(), tiny.config(8))


def sample(path, output):
    sampler = Sampler(
        output_dir=str(output),
        checkpoint_path=str(path),
        ode_sampler=sampling.ODESampler(solver=FixedGrid(steps=2)),
        num_samples=4,
        batch_size=4,
    )
    return sampler.run(tiny.model(image_shape=tiny.SHAPE))


@pytest.fixture(params=[evaluate, sample])
def program(request, monkeypatch):
    tiny.use_tiny_data(monkeypatch)
    monkeypatch.setattr(plots, "image_grid", lambda *_: None)
    return request.param


def test_summary_names_the_checkpoint_that_was_taken(program, run_dir, tmp_path):
    for path, step in [(run_dir, 4), (run_dir / "checkpoint_2", 2)]:
        summary = program(path, tmp_path / "out")
        assert (summary["step"], summary["checkpoint"]) == (
            step,
            str(run_dir / f"checkpoint_{step}"),
        )
        assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


def test_a_missing_checkpoint_is_told_before_data_are_read(program, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_split", lambda _: pytest.fail("read data first"))
    with pytest.raises(ValueError, match="there is no such directory"):
        program(tmp_path / "nowhere", tmp_path / "out")


def test_asked_to_stop(program, run_dir, tmp_path, monkeypatch, capfd):
    enter = preemption.StopRequest.__enter__

    def asking(stop):
        enter(stop)
        os.kill(os.getpid(), signal.SIGTERM)
        while not stop.requested:
            pass
        return stop

    monkeypatch.setattr(preemption.StopRequest, "__enter__", asking)
    with pytest.raises(checks.Preempted, match="Stopped by SIGTERM after 0 of .* same command"):
        program(run_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()
