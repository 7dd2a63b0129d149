"""Series of checkpoints: each is scored once, into its own folder, and stops and resumes."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest
import tiny

from idode_gin import checks
from idode_gin.checkpoints import meta, saving
from idode_gin.checkpoints import series as checkpoint_series
from idode_gin.checkpoints.series import All, Watch
from idode_gin.dequantizers.truncated_normal import TruncatedNormal
from idode_gin.devices import partitioning
from idode_gin.evaluation import curve, results
from idode_gin.evaluation import scores as eval_scores
from idode_gin.evaluation.evaluator import Evaluator
from idode_gin.feed import batches
from idode_gin.likelihood.ode_likelihood import ODELikelihood
from idode_gin.likelihood.pilot import Pilot
from idode_gin.losses.bound import VariationalBound
from idode_gin.processes import preemption
from idode_gin.reports import plots
from idode_gin.runs import image_loop
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.divergence import Exact
from idode_gin.solvers.fixed_grid import FixedGrid
from idode_gin.training import train_state

SOON = {"period": 0.01, "timeout": 0.02}
FILES = ("results.npz", "results.parquet", "table.txt")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run directory with checkpoints of four steps."""
    transformation = tiny.trainer("unused").optimizer.build()
    folder = tmp_path_factory.mktemp("saved") / "run"
    config = saving.CheckpointConfig(save=saving.SaveCheckpointConfig(keep=None))
    with saving.Checkpoints(folder, config, {}) as all_of_them:
        for step in (2, 4, 6, 10):
            params = tiny.model().init(jax.random.key(step), tiny.SHAPE)
            state = train_state.create(params, transformation, ["loss"])
            all_of_them.save(state.__class__(**{**vars(state), "step": state.step + step}))
    return folder


@pytest.fixture
def add(saved, tmp_path):
    """Save the checkpoint of a step atomically, as a trainer does."""

    def save(step):
        name, run = f"checkpoint_{step}", tmp_path / "run"
        shutil.copytree(saved / name, run / f"{name}.tmp")
        return (run / f"{name}.tmp").rename(run / name)

    (tmp_path / "run").mkdir()
    return save


@pytest.fixture
def score(monkeypatch, tmp_path):
    """Score a series of `tmp_path/run` into `tmp_path/out`; return the steps it scored."""
    tiny.use_tiny_data(monkeypatch)
    monkeypatch.setattr(results, "draw", lambda *_: None)
    scored = []
    run = image_loop.ImageLoop.run

    def watched(loop, *arguments):
        scored.append(loop.kept._folder.parent.name)
        return run(loop, *arguments)

    monkeypatch.setattr(image_loop.ImageLoop, "run", watched)

    def score(series, output="out", path="run", **changes):
        scored.clear()
        fields = {
            "likelihoods": {},
            "variational_bound": VariationalBound(num_times=2),
            "solve_size": 8,
            "histogram_split": None,
        }
        made = Evaluator(
            output_dir=str(tmp_path / output),
            checkpoint_path=str(tmp_path / path),
            checkpoints=series,
            **(fields | changes),
        )
        found = made.run(tiny.model(), tiny.config(8))
        return found if series is None else list(scored)

    return score


def steps(*numbers):
    return [f"step_{number}" for number in numbers]


def test_each_is_scored_once_and_as_if_alone(score, add, tmp_path, capsys):
    for step in (2, 10, 4):
        add(step)
    assert score(All()) == steps(2, 4, 10)
    rows = list(csv.DictReader((tmp_path / "out/curve.csv").open()))
    assert [int(row["step"]) for row in rows] == [2, 4, 10]
    for row in rows:
        alone = score(None, "alone", f"run/checkpoint_{row['step']}")
        folder = tmp_path / "out" / f"step_{row['step']}"
        for name in FILES:
            assert (folder / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
        summary = json.loads((folder / "summary.json").read_text())
        bound = summary["variational_bound"]
        assert bound == alone["variational_bound"]
        assert float(row["variational_bound/bpd"]) == bound["mean"]
        assert float(row["variational_bound/stderr"]) == bound["stderr"]
    assert (tmp_path / "out/curve.png").read_bytes().startswith(b"\x89PNG")
    assert "checkpoint_" in capsys.readouterr().out
    assert score(All()) == []
    assert capsys.readouterr().out == (
        f"Nothing left to score. {tmp_path / 'out' / 'curve.csv'} holds the scores of 3 "
        f"checkpoints of {tmp_path / 'run'}.\n"
    )
    add(6)
    shutil.rmtree(tmp_path / "run/checkpoint_2")
    assert score(All()) == steps(6)
    assert len(list(csv.DictReader((tmp_path / "out/curve.csv").open()))) == 4


def piloted(solver):
    likelihood = ODELikelihood(dequantizer=TruncatedNormal(), solver=solver)
    pilot = Pilot(num_images=2, max_steps=16, tolerance=10.0)  # tolerates any grid
    return {"likelihoods": {"tn": likelihood}, "pilot": pilot}


@pytest.mark.full_cases("pilot")
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="bound"),
        pytest.param(piloted(None), id="pilot"),
        pytest.param(piloted(FixedGrid(steps=2)), id="solver", marks=pytest.mark.full),
    ],
)
def test_all_checkpoints_share_compiled_functions(score, add, monkeypatch, changes):
    call, traced = tiny.AffineNetwork.__call__, []

    def counting(network, *arguments):
        traced.append(1)
        return call(network, *arguments)

    monkeypatch.setattr(tiny.AffineNetwork, "__call__", counting)
    add(2)
    score(None, "alone", "run/checkpoint_2", **changes)
    alone = len(traced)
    add(4), add(6)
    assert set(score(All(), **changes)) == set(steps(2, 4, 6))
    assert len(traced) == 2 * alone > 0


def test_grids_of_different_lengths_share_a_program(monkeypatch):
    """Checkpoints may need different grids; each score is that of its own grid."""
    model, split = tiny.model(), tiny.split()
    params = model.init(jax.random.key(0), tiny.SHAPE)
    batch = next(iter(batches.eval_batches(split, 4)))
    call, traced = tiny.AffineNetwork.__call__, []

    def counting(network, *arguments):
        traced.append(1)
        return call(network, *arguments)

    monkeypatch.setattr(tiny.AffineNetwork, "__call__", counting)
    partitioner = partitioning.PjitPartitioner()
    scorer = eval_scores.scorers(model, VariationalBound(), 0, partitioner, 4)
    found = {}
    for number in (9, 5, 30):
        estimator = ODELikelihood(
            dequantizer=TruncatedNormal(), divergence=Exact(), solver=Adams(steps=number)
        )
        scores = scorer("tn", estimator)(params, partitioner.put_batch(batch, 4))
        found[number] = np.asarray(scores["bpd"])
        assert set(np.asarray(scores["nfe"])) == {number + 1}
        if number == 9:
            once = len(traced)
    assert len(traced) == once
    five = dataclasses.replace(estimator, solver=Adams(steps=5))
    key = eval_scores.key_of(0, "tn")
    alone = jax.jit(lambda params, batch: model.likelihood_fn(params, batch, key, five))(
        params, batch
    )
    np.testing.assert_allclose(found[5], alone.bits_per_dim(16), rtol=1e-5)
    assert np.abs(found[5] - found[30]).max() > 1e-4


def test_another_checkpoint_of_the_same_step_is_scored_again(score, add, saved, tmp_path):
    add(2)
    assert score(All()) == steps(2)
    shutil.rmtree(tmp_path / "run/checkpoint_2")
    shutil.copytree(saved / "checkpoint_4", tmp_path / "run/checkpoint_2")
    path = tmp_path / "run/checkpoint_2/meta/metadata"
    path.write_text(json.dumps(meta.sealed(json.loads(path.read_text()) | {"step": 2})))
    assert score(All()) == steps(2)


def test_a_series_stopped_in_the_middle_resumes(score, add, monkeypatch, tmp_path):
    add(2), add(4)
    score(All(), "undisturbed")
    requested, polls = preemption.StopRequest.requested.fget, []

    def asking(stop):
        polls.append(stop)
        if len(polls) == 6:  # two batches of the second
            os.kill(os.getpid(), signal.SIGTERM)
            while not requested(stop):
                time.sleep(0.001)
        return requested(stop)

    with monkeypatch.context() as patch:
        patch.setattr(preemption.StopRequest, "requested", property(asking))
        with pytest.raises(checks.Preempted, match=r"SIGTERM after \d+ of 20 images"):
            score(All())
    assert score(All()) == steps(4)
    for step, name in [(s, n) for s in (2, 4) for n in FILES]:
        found, expected = (tmp_path / o / f"step_{step}" / name for o in ("out", "undisturbed"))
        assert found.read_bytes() == expected.read_bytes()
    assert (tmp_path / "out/curve.csv").read_text() == (
        tmp_path / "undisturbed/curve.csv"
    ).read_text()


def test_watching_scores_new_checkpoints_and_reports_deleted_ones(
    score, add, monkeypatch, tmp_path, capsys
):
    """While the first is scored two more are saved, of which one is deleted; later a fourth."""
    run, waits = image_loop.ImageLoop.run, []

    def meanwhile(loop, *arguments):
        if not (tmp_path / "run/checkpoint_4").exists() and not waits:
            add(4), add(6)
        return run(loop, *arguments)

    def wait(seconds, directory):
        waits.append(seconds)
        if len(waits) == 1:
            add(10)
            (tmp_path / "run/checkpoint_12.orbax-checkpoint-tmp").mkdir()  # half written

    looks, oldest = [], checkpoint_series._Backlog._oldest

    def look(backlog):
        looks.append(backlog)
        if len(looks) == 3:
            shutil.rmtree(tmp_path / "run/checkpoint_6")
        return oldest(backlog)

    monkeypatch.setattr(image_loop.ImageLoop, "run", meanwhile)
    monkeypatch.setattr(checkpoint_series, "_wait", wait)
    monkeypatch.setattr(checkpoint_series._Backlog, "_oldest", look)
    add(2)
    score(Watch(period=30, timeout=70))
    assert sorted(each.name for each in (tmp_path / "out").glob("step_*")) == sorted(
        steps(2, 4, 10)
    )
    assert waits == [30, 30, 30, 10]  # after the first wait there was a new one
    told = capsys.readouterr().out
    assert "checkpoint_6 was deleted before its turn" in told
    assert "Waiting for another checkpoint" in told


def test_watching_waits_for_the_run_directory(score, add, tmp_path):
    (tmp_path / "run").rmdir()

    def later():
        time.sleep(0.2)
        (tmp_path / "run").mkdir()
        add(2)

    thread = threading.Thread(target=later)
    thread.start()
    assert score(Watch(period=0.05, timeout=1.0)) == steps(2)
    thread.join()


def test_asked_to_stop_while_waiting(score, add, monkeypatch):
    add(2)
    enter = preemption.StopRequest.__enter__

    def asking(stop):
        enter(stop)
        if stop.notice == checkpoint_series.NOTICE:
            os.kill(os.getpid(), signal.SIGTERM)
        return stop

    monkeypatch.setattr(preemption.StopRequest, "__enter__", asking)
    with pytest.raises(checks.Preempted, match="SIGTERM while waiting for checkpoints .* resume"):
        score(Watch(period=30.0))
    assert score(All()) == []  # those saved were scored before


def test_a_damaged_checkpoint_is_skipped_until_it_is_repaired(
    score, add, saved, caplog, monkeypatch
):
    add(2)
    path = add(4) / "meta/metadata"
    whole = path.read_text()
    path.write_text(whole[:40])

    def repair(*_):
        if path.read_text() != whole:
            path.write_text(whole)

    monkeypatch.setattr(checkpoint_series, "_wait", repair)
    assert score(Watch(**SOON)) == steps(2, 4)
    assert "checkpoint_4 is not a complete checkpoint" in caplog.text
    assert "is skipped" in caplog.text


def test_a_checkpoint_deleted_while_it_is_read_is_skipped(score, add, monkeypatch, capsys):
    add(2), add(4)
    loaded = curve._loaded

    def too_late(checkpoint, load):
        if checkpoint.name == "checkpoint_2":
            shutil.rmtree(checkpoint)
        return loaded(checkpoint, load)

    monkeypatch.setattr(curve, "_loaded", too_late)
    assert score(All()) == steps(4)
    assert "checkpoint_2 was deleted before it was read" in capsys.readouterr().out


def test_scores_that_are_not_finite_do_not_stop_the_others(score, add, monkeypatch, tmp_path):
    add(2), add(4)
    check = eval_scores.check_scores

    def failing(name, *given):
        if not (tmp_path / "out/step_2/summary.json").exists() and not failed:
            failed.append(name)
            raise checks.NonFiniteError("no finite bits per dim")
        return check(name, *given)

    failed = []
    monkeypatch.setattr(eval_scores, "check_scores", failing)
    with pytest.raises(checks.NonFiniteError, match="checkpoint_2 are not finite"):
        score(All())
    assert (tmp_path / "out/step_4/summary.json").exists()
    assert score(All()) == steps(2)  # tried again


def test_scores_that_are_finite_at_last_are_no_failure(score, add, monkeypatch, tmp_path):
    """A resumed run has saved the checkpoint again while its series was watched."""
    add(2)
    run, tries = Evaluator._score, []

    def failing(made, prepared, *given):
        tries.append(given)
        if len(tries) == 1:
            raise checks.NonFiniteError("no finite bits per dim")
        return run(made, prepared, *given)

    twice = lambda _, run_dir, is_done: iter([tmp_path / "run/checkpoint_2"] * 2)  # noqa: E731
    monkeypatch.setattr(All, "each", twice)
    monkeypatch.setattr(Evaluator, "_score", failing)
    score(All())
    assert len(tries) == 2


@pytest.mark.parametrize("lost", ["curve.csv", "curve.png"])
def test_a_curve_that_was_not_written_is(lost, score, add, tmp_path, capsys, monkeypatch):
    """A process that is stopped after the scores of a checkpoint has not drawn the curve."""
    add(2)
    score(All())
    before = (tmp_path / "out" / "curve.csv").read_bytes()
    (tmp_path / "out" / lost).unlink()
    assert score(All()) == []
    assert (tmp_path / "out" / "curve.csv").read_bytes() == before
    assert (tmp_path / "out" / "curve.png").exists()
    draw = lambda *_: pytest.fail("drawn again")  # noqa: E731
    monkeypatch.setattr(plots, "plot_bpd_curve", draw)
    assert score(All()) == []


def test_a_curve_of_other_settings_raises(score, add, tmp_path, monkeypatch):
    add(2)
    score(All())
    with pytest.raises(ValueError, match=r"seed was 0 and is now 1.*another output"):
        score(All(), seed=1)
    with pytest.raises(ValueError, match="parameters was ema and is now raw"):
        score(All(), use_ema=False)
    with pytest.raises(ValueError, match="pilot was None and is now Pilot"):
        score(All(), pilot=Pilot(tolerance=0.5))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with pytest.raises(ValueError, match=r"run was .*/run and is now .*/copy"):
        score(All(), path="copy")
    tiny.use_tiny_data(monkeypatch, 21)
    with pytest.raises(ValueError, match=r"(?s)dataset_sha256.* was .* and is now "):
        score(All())


def test_a_series_and_a_single_evaluation_share_no_folder(score, add, tmp_path):
    add(2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/series.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a series of checkpoints \(series.json\).*out_single"):
        score(None)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/summary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"of one checkpoint \(summary.json\).*out_series"):
        score(All())
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["summary.json"]


@pytest.mark.parametrize("series", [All(), Watch(**SOON)])
def test_nothing_to_score(series, score, add, tmp_path):
    with pytest.raises(ValueError, match=r"No checkpoint in |no complete checkpoint"):
        score(series)
    add(2)
    with pytest.raises(ValueError, match="requires a run directory"):
        score(series, path="run/checkpoint_2")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="it is a file"):
        score(series, path="file")
    with pytest.raises(ValueError, match="No checkpoint at ''"):
        series.check("")  # pathlib takes it for the current directory


@pytest.mark.parametrize("wrong", [{"period": 0.0}, {"timeout": -1.0}, {"timeout": float("nan")}])
def test_invalid_times(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Watch(**wrong)


def test_the_curve_has_finished_checkpoints_sorted_by_step(tmp_path):
    for step in (10, 9):
        folder = tmp_path / f"step_{step}"
        folder.mkdir()
        entry = {"mean": float(step), "stderr": None, "nfe": 3.0}
        (folder / "summary.json").write_text(json.dumps({"step": step, "tn": entry}))
    (tmp_path / "step_11").mkdir()
    (tmp_path / "step_11/summary.json").write_text('{"st')
    assert curve.curve(tmp_path) == [
        {"step": step, "tn/bpd": step, "tn/stderr": None, "tn/nfe": 3.0} for step in (9, 10)
    ]
