"""Interrupted runs end as undisturbed ones; resuming with changed settings; warm starts."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
import tiny
from tiny_runs import outcome, rows, run

from idode_gin import checks
from idode_gin.checkpoints import files, saving, steps_left
from idode_gin.checkpoints.saving import RestoreCheckpointConfig
from idode_gin.generation.sampler import Sampler
from idode_gin.processes import preemption
from idode_gin.reports import metrics
from idode_gin.runs import facts as facts_lib
from idode_gin.runs import means as evaluation
from idode_gin.runs import run_inputs
from idode_gin.schedules.time import linear
from idode_gin.training import meters, optimizers
from idode_gin.training.reporter import Reporter
from idode_gin.training.setup import Images


def test_the_same_command_twice_gives_the_same_numbers(undisturbed, tmp_path):
    run(tmp_path / "again")
    assert outcome(tmp_path / "again") == outcome(undisturbed[0])


def test_a_seed_changes_them(undisturbed, tmp_path):
    run(tmp_path / "other", seed=1)
    assert outcome(tmp_path / "other") != outcome(undisturbed[0])


def test_running_a_finished_run_again_changes_nothing(undisturbed, tmp_path, capsys):
    run(tmp_path / "run")
    before = outcome(tmp_path / "run")
    capsys.readouterr()
    run(tmp_path / "run")
    assert "Nothing left to train" in capsys.readouterr().out
    assert outcome(tmp_path / "run") == before == outcome(undisturbed[0])


def test_a_run_that_has_more_steps_than_asked_says_so(undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    before = outcome(tmp_path / "run")
    run(tmp_path / "run", 4)
    said = capsys.readouterr().out
    assert "is at step 6, more than TRAIN_STEPS = 4 asks. To continue, bind a larger" in said
    assert "to step 4" not in said
    assert outcome(tmp_path / "run") == before


@pytest.mark.parametrize("train_steps", [4, 6])
def test_a_warm_start_that_leaves_nothing_to_train_is_refused(undisturbed, tmp_path, train_steps):
    """The checkpoint is at step 6."""
    restore = RestoreCheckpointConfig(path=str(undisturbed[0]))
    with pytest.raises(ValueError, match=rf"step of .*_6, 6, .* = {train_steps}\..*'reset'"):
        run(tmp_path / "run", train_steps, restore=restore)
    assert not list(tmp_path.iterdir())
    counted_anew = RestoreCheckpointConfig(path=str(undisturbed[0]), step="reset")
    tiny.trainer(tmp_path / "run", train_steps, restore=counted_anew).check_start(tiny.model())


def test_every_process_plots_at_its_first_row_and_after_evaluations(tmp_path, monkeypatch):
    """Rows are due every third step and at evaluations, every fourth."""
    plotted = []
    monkeypatch.setattr(
        Reporter, "plot_rows", lambda reporter: plotted.append(reporter.log.rows[-1]["step"])
    )
    run(tmp_path / "run", 5)
    assert plotted == [3, 4, 5]  # the last one is of the end
    plotted.clear()
    run(tmp_path / "run", 11)
    assert plotted == [6, 8, 11]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


QUICK_CUTS = [(2, False), (3, True), (4, True), (5, False), (6, True)]


@pytest.mark.full_cases("(2-True|[345]-.*)")
@pytest.mark.parametrize(
    ("step", "before_row"),
    [
        pytest.param(step, before, marks=() if (step, before) in QUICK_CUTS else pytest.mark.full)
        for step in range(1, 7)
        for before in (True, False)
    ],
)
def test_cut_off_anywhere_and_started_again(undisturbed, tmp_path, monkeypatch, step, before_row):
    """Die at a step, before or after its row is written and its checkpoint saved."""
    write, after_step = metrics.MetricsLog.write, meters.Meters.after_step

    def dying_write(log, at, values):
        if at == step:
            raise Killed
        return write(log, at, values)

    def dying_after_step(measured, at, outputs):
        if at == step + 1:
            raise Killed
        after_step(measured, at, outputs)

    with monkeypatch.context() as patch:
        if before_row:
            patch.setattr(metrics.MetricsLog, "write", dying_write)
        else:
            patch.setattr(meters.Meters, "after_step", dying_after_step)
        try:
            run(tmp_path / "run")
            assert before_row == (step in (1, 2, 5)) or step == 6
        except Killed:
            pass
    run(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(undisturbed[0])


@pytest.mark.full
def test_a_torn_row_and_a_damaged_checkpoint(undisturbed, tmp_path, caplog):
    folder = tmp_path / "run"
    run(folder)
    (folder / "checkpoint_6" / "meta" / "metadata").write_text("{")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "train/bp')
    run(folder)
    assert outcome(folder) == outcome(undisturbed[0])
    assert "Trying the one before it" in caplog.text
    assert (folder / "damaged_checkpoint_6").is_dir()


def test_rows_beyond_the_restored_step_are_rewritten(tmp_path):
    """The command may have changed since they were written."""
    folder = tmp_path / "run"
    run(folder)
    before = rows(folder)
    shutil.rmtree(folder / "checkpoint_6")
    run(folder, seed=1)
    assert rows(folder)[:2] == before[:2]
    assert rows(folder)[2]["step"] == 6
    assert rows(folder)[2] != before[2]


def test_extending_a_run(tmp_path):
    """Six steps and then three give the parameters of nine at once."""
    run(tmp_path / "long", 9)
    run(tmp_path / "extended", 6)
    run(tmp_path / "extended", 9)
    assert outcome(tmp_path / "extended")[0] == outcome(tmp_path / "long")[0]


def signal_at(monkeypatch, step):
    """Send this process SIGTERM at a step."""
    after_step = meters.Meters.after_step

    def asking(measured, at, outputs):
        after_step(measured, at, outputs)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)
            while not preemption._listener.received:
                pass

    monkeypatch.setattr(meters.Meters, "after_step", asking)


@pytest.mark.full_cases("[34]")
@pytest.mark.parametrize("step", [3, 4, 6])
def test_asked_to_stop_after_a_step(undisturbed, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        signal_at(patch, step)
        with pytest.raises(checks.Preempted, match=rf"SIGTERM after step {step} of 6.*checkpoint"):
            run(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["exit_reason"] == "preempted"
    assert summary["step"] == step
    assert step in saving.saved_steps(tmp_path / "run")
    run(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(undisturbed[0])


def test_asked_to_stop_while_evaluating(undisturbed, tmp_path, monkeypatch):
    over_batches = evaluation.over_batches

    def asked(evaluate, batches, num_images, is_asked_to_stop):
        os.kill(os.getpid(), signal.SIGINT)
        while not is_asked_to_stop():
            pass
        return over_batches(evaluate, batches, num_images, is_asked_to_stop)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "over_batches", asked)
        with pytest.raises(checks.Preempted, match="SIGINT after step 4"):
            run(tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run")] == [3]
    run(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(undisturbed[0])


def test_starting_from_another_run(undisturbed, tmp_path):
    folder, _ = undisturbed
    source = RestoreCheckpointConfig(path=str(folder / "checkpoint_4"))
    summary = run(tmp_path / "run", restore=source)
    assert summary["params_sha256"] == undisturbed[1]["params_sha256"]
    assert [row["step"] for row in rows(tmp_path / "run")] == [6]
    assert steps_left.first_step(tmp_path / "run", RestoreCheckpointConfig()) == 4
    fresh = dataclasses.replace(source, optimizer="reset", step="reset")
    summary = run(tmp_path / "fresh", 2, restore=fresh)
    assert summary["step"] == 2
    assert [row["step"] for row in rows(tmp_path / "fresh")] == [2]
    assert steps_left.first_step(tmp_path / "fresh", fresh) == 0
    report = (tmp_path / "fresh" / "warm-start.txt").read_text()
    assert report.startswith(f"Warm start from {folder / 'checkpoint_4'}.\n  params")
    assert "optimizer/" in report


def test_a_start_that_a_begun_run_did_not_have_is_said_to_have_no_effect(
    undisturbed, tmp_path, caplog
):
    """The newest checkpoint of the run is its own, at step 5; it started from that at step 4."""
    folder, model = undisturbed[0], tiny.model(image_shape=tiny.SHAPE)
    run(tmp_path / "run", 5, restore=RestoreCheckpointConfig(path=str(folder / "checkpoint_4")))
    run(tmp_path / "run", 6)  # later checkpoints hold it as well
    assert "has no effect" not in caplog.text
    shutil.copytree(folder, tmp_path / "scratch")
    own = tmp_path / "run"
    for directory, path, has_effect in (
        (own, folder, True),
        (own, folder / ".." / folder.name / "checkpoint_4", True),
        (own, own, True),
        (own, own / "checkpoint_6", True),
        (own, own / "checkpoint_5", False),
        (own, folder / "checkpoint_6", False),
        (own, tmp_path / "gone", False),
        (tmp_path / "scratch", folder, False),
        (tmp_path / "scratch", tmp_path / "scratch", True),
    ):
        caplog.clear()
        restore = RestoreCheckpointConfig(path=str(path))
        tiny.trainer(directory, 9, restore=restore).dry_run(model, tiny.config())
        said = f"INITIAL_CHECKPOINT_PATH = '{path}' has no effect: {directory} holds a run"
        assert (said not in caplog.text) == has_effect, (directory, path)
    reset = RestoreCheckpointConfig(path=str(own), mode="latest", optimizer="reset", step="reset")
    for directory, names in ((own, "optimizer, step"), (tmp_path / "elsewhere", None)):
        caplog.clear()
        tiny.trainer(directory, 9, restore=reset).dry_run(model, tiny.config())
        said = f"checkpoint_6 as it is: RestoreCheckpointConfig has no effect ({names})."
        assert (said in caplog.text) == (names is not None)
    elsewhere = tiny.trainer(own, 9, restore=RestoreCheckpointConfig(path="elsewhere"))
    elsewhere.dry_run(model, tiny.config())
    assert f"started from {folder / 'checkpoint_4'}" in caplog.text


def test_the_start_that_a_run_took_is_recorded(undisturbed, tmp_path):
    """The newest checkpoint has intact facts, and damaged arrays: the one before it is taken."""
    source = tmp_path / "source"
    shutil.copytree(undisturbed[0], source)
    for each in (source / "checkpoint_6").rglob("d/*"):
        each.write_bytes(each.read_bytes()[:10])
    run(tmp_path / "run", 7, restore=RestoreCheckpointConfig(path=str(source)))
    _, found = files.described(files.newest_first(tmp_path / "run"))
    assert found["facts"][steps_left.FIRST_STEP] == 4
    assert found["facts"][steps_left.STARTED_FROM] == str(source / "checkpoint_4")


def test_a_run_whose_checkpoints_are_gone_keeps_its_rows(undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[0], folder)
    for each in folder.glob("checkpoint_*"):
        shutil.rmtree(each)
    there = {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()}
    for begin in (run, lambda at: tiny.trainer(at).check_start(tiny.model())):
        with pytest.raises(ValueError, match=r"has none, though its summary.json names .*_6\."):
            begin(folder)
    assert {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()} == there
    (folder / "summary.json").unlink()
    run(folder)
    assert outcome(folder) == outcome(undisturbed[0])


def test_a_warm_start_that_is_stopped_before_its_first_step(undisturbed, tmp_path, monkeypatch):
    """An evaluation is due after step 4, which this run has not trained."""
    source = RestoreCheckpointConfig(path=str(undisturbed[0] / "checkpoint_4"))
    announce = Reporter.announce

    def asked(self, start):
        announce(self, start)
        os.kill(os.getpid(), signal.SIGTERM)

    for settings, expected in ({}, [6]), ({"run_eval_before_training": True}, [4, 6]):
        folder = tmp_path / str(len(settings))
        with monkeypatch.context() as patch:
            patch.setattr(Reporter, "announce", asked)
            with pytest.raises(checks.Preempted):
                run(folder, restore=source, **settings)
        assert saving.saved_steps(folder) == [4]
        run(folder, restore=source, **settings)
        assert [row["step"] for row in rows(folder)] == expected
        assert "train/loss" not in rows(folder)[0] or expected == [6]


@pytest.mark.full
def test_accumulation_may_be_switched_on_in_mid_run(tmp_path, caplog):
    folder = tmp_path / "run"
    run(folder, 4, optimizer=optimizers.AdamW(learning_rate=1e-2, warmup_steps=2))
    twice = optimizers.AdamW(learning_rate=1e-2, warmup_steps=2, accumulation_steps=2)
    model = tiny.model(image_shape=tiny.SHAPE)
    text = tiny.trainer(folder, 6, optimizer=twice).dry_run(model, tiny.config())
    assert text.endswith(f"Would train from {folder / 'checkpoint_4'}.")
    summary = run(folder, 4, optimizer=twice)
    assert summary["step"] == 4
    assert "accumulation_steps was 1" in caplog.text
    summary = run(folder, 6, optimizer=twice)
    assert summary["step"] == 6


def test_another_seed_in_the_same_directory_is_logged(tmp_path, caplog, monkeypatch):
    run(tmp_path / "run", 4)
    described = tiny.trainer(tmp_path / "run", 6, seed=3)
    planned = described.dry_run(tiny.model(image_shape=tiny.SHAPE), tiny.config(8))
    assert planned.count("WARNING: ") == 3  # seed, batch size, and `image_shape` of the model
    assert "\nWARNING: seed was 0 and is now 3. Training" in planned
    tiny.use_tiny_data(monkeypatch, 21)
    run(tmp_path / "run", 6, seed=3, dataset=tiny.config(8))
    assert "seed was 0 and is now 3" in caplog.text
    assert "batch_size was 4" in caplog.text
    assert "eval_dataset_sha256 was" in caplog.text
    assert "optimizer was" not in caplog.text


def test_a_finished_run_does_not_say_that_training_continues(tmp_path, caplog):
    run(tmp_path / "run", 4)
    described = tiny.trainer(tmp_path / "run", 4, seed=3)
    planned = described.dry_run(tiny.model(image_shape=tiny.SHAPE), tiny.config())
    run(tmp_path / "run", 4, seed=3)
    for text in (planned, caplog.text):
        assert "seed was 0 and is now 3. This changes nothing, because the run is" in text
        assert "Training continues" not in text


def test_another_meaning_of_the_output_in_the_same_directory_is_refused(tmp_path):
    run(tmp_path / "run", 2)
    time = linear.Linear(gamma_min=-7.0, gamma_max=5.0)
    with pytest.raises(ValueError, match=r"model\.time\.gamma_min was -7\.8.* is now -7\.0"):
        run(tmp_path / "run", 4, model=tiny.model(time=time))
    with pytest.raises(ValueError, match=r"was trained as another model: .*gamma_min"):
        run_inputs.load_params(tiny.model(time=time), tiny.SHAPE, str(tmp_path / "run"), True)
    sampler = Sampler(output_dir=str(tmp_path / "out"), checkpoint_path=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"was trained as another model: .*gamma_min"):
        sampler.dry_run(tiny.model(time=time, image_shape=tiny.SHAPE))
    assert "Would draw" in sampler.dry_run(tiny.model(image_shape=tiny.SHAPE))
    found = run_inputs.load_params(tiny.model(), tiny.SHAPE, str(tmp_path / "run"), True)
    assert found.step == 2


def test_a_warm_start_from_another_meaning_is_logged(undisturbed, tmp_path, caplog):
    restore = RestoreCheckpointConfig(path=str(undisturbed[0] / "checkpoint_4"), step="reset")
    run(tmp_path / "same", 1, restore=restore)
    assert "another model" not in caplog.text
    time = linear.Linear(gamma_min=-7.0, gamma_max=5.0)
    run(tmp_path / "other", 1, model=tiny.model(time=time), restore=restore)
    assert "checkpoint_4 was trained as another model" in caplog.text
    assert "gamma_min was -7.8" in caplog.text


def test_what_training_draws_is_no_meaning_of_the_output():
    """`model.time` is one, and its name begins `model.time_sampler`."""
    saved, now = {"model.time_sampler": "Uniform"}, {"model.time_sampler": "Importance"}
    assert facts_lib.changed(saved, now, facts_lib.MEANING) == []
    assert len(facts_lib.changed(saved, now)) == 1


def test_another_network_in_the_same_directory_is_refused(tmp_path):
    run(tmp_path / "run", 2)
    with pytest.raises(
        ValueError, match=r"another model: model\.network\.width was 8 and is now 16"
    ):
        run(tmp_path / "run", 4, model=tiny.model(width=16))


@contextlib.contextmanager
def settled(calls):
    yield lambda: calls.append("settled")


@pytest.mark.parametrize(("steps", "expected"), [(4, []), (6, ["settled"])])
def test_a_run_is_settled_once_it_has_a_step_to_train(tmp_path, steps, expected):
    run(tmp_path / "run", 4)
    calls = []
    model, data = tiny.model(), tiny.config()
    tiny.trainer(tmp_path / "run", steps).run(model, data, data, begin=lambda: settled(calls))
    assert calls == expected
    with pytest.raises(ValueError, match="another model"):
        tiny.trainer(tmp_path / "run", 9).run(
            tiny.model(width=16), data, data, begin=lambda: settled(calls)
        )
    assert calls == expected


def test_a_run_under_way_has_no_summary_of_an_earlier_end(tmp_path, monkeypatch):
    run(tmp_path / "run", 4)
    before = json.loads((tmp_path / "run/summary.json").read_text())
    assert before["images_per_second"] > 0
    run(tmp_path / "run", 4)  # nothing is left to train
    after = json.loads((tmp_path / "run/summary.json").read_text())
    assert after["images_per_second"] > 0
    assert after["step"] == before["step"] == 4

    read = Images.train_batch
    for last_read, is_there in ((3, True), (4, False)):  # before the first update, and after it

        def killed(images, step, last_read=last_read):
            if step > last_read:
                raise KeyError
            return read(images, step)

        monkeypatch.setattr(Images, "train_batch", killed)
        with pytest.raises(KeyError):
            run(tmp_path / "run", 8)
        assert (tmp_path / "run/summary.json").exists() == is_there


@pytest.mark.parametrize(
    ("name", "words", "steps"),
    [
        ("read", "while starting or finishing", []),
        ("restore", "while starting or finishing", []),
        ("step", "before step 1 of 6", []),
        ("evaluate", "after step 3 of 6", [3]),
    ],
)
def test_asked_to_stop_while_reading_or_compiling(tmp_path, name, words, steps):
    script = pathlib.Path(__file__).parents[1] / "support" / "blocked_training.py"
    process = subprocess.Popen(
        [sys.executable, script, name, tmp_path],
        cwd=script.parents[2],
        env=os.environ | {"PYTHONPATH": str(script.parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while process.stdout.readline() not in ("blocked\n", ""):
            pass
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == checks.EXIT_PREEMPTED, errors
    assert f"Stopped by SIGTERM {words}" in errors
    assert saving.saved_steps(tmp_path) == steps
