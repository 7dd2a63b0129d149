"""The loop: what a run leaves behind, and that stopping it anywhere changes nothing."""

import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from idode_gin import checks, models
from idode_gin.checkpoints import saving
from idode_gin.checkpoints.saving import RestoreCheckpointConfig
from idode_gin.devices import partitioning
from idode_gin.evaluation import evaluator, results
from idode_gin.feed import batches, loading
from idode_gin.losses.bound import VariationalBound
from idode_gin.processes.preemption import StopRequest
from idode_gin.reports import fingerprints, metrics, plots
from idode_gin.runs import facts, run_inputs
from idode_gin.runs import means as evaluation
from idode_gin.schedules.time import linear
from idode_gin.training import optimizers


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Data without seqio; and no pictures, which would be half of the time."""
    tiny.use_tiny_data(monkeypatch)
    for name in ("plot_bpd_curve", "plot_integrand", "plot_loss_by_gamma"):
        monkeypatch.setattr(plots, name, lambda *_: None)


def run(model_dir, train_steps=6, *, model=None, dataset=None, **changes):
    trainer = tiny.trainer(model_dir, train_steps, **changes)
    return trainer.run(model or tiny.model(), dataset or tiny.config(), tiny.config(8))


def rows(model_dir):
    return [metrics.reproducible(row) for row in metrics.read_rows(model_dir / "metrics.jsonl")]


def outcome(model_dir):
    """What must not depend on how often a run was interrupted."""
    summary = json.loads((model_dir / "summary.json").read_text())
    names = ("exit_reason", "step", "bpd", "bpd_stderr", "params_sha256", "ema_sha256")
    return [summary[name] for name in names], rows(model_dir)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run of six steps that every other one is compared with."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.use_tiny_data(patch)
        folder = tmp_path_factory.mktemp("undisturbed") / "run"
        return folder, run(folder, tensorboard=True)


def state_at(model_dir, step):
    trainer = tiny.trainer(model_dir)
    batch = batches.train_batch(tiny.split(), tiny.config(), 0)
    program = trainer.program(tiny.model(), tiny.SHAPE, batch)
    restore = RestoreCheckpointConfig(path=str(model_dir / f"checkpoint_{step}"))
    config = saving.CheckpointConfig(restore=restore)
    elsewhere = saving.Checkpoints(model_dir.with_name("elsewhere"), config, {})
    return elsewhere.restore(program.abstract_state, program.init)[0]


def test_what_a_run_leaves_behind(undisturbed):
    folder, summary = undisturbed
    names = {each.name for each in folder.iterdir()}
    assert names == {
        "checkpoint_2",
        "checkpoint_4",
        "checkpoint_6",
        "metrics.jsonl",
        "model-info.txt",
        "summary.json",
        "train",
        "training_eval",
    }
    assert {"bpd.png", "integrand.png"} < {each.name for each in (folder / "train").iterdir()}
    assert len(list((folder / "training_eval" / "tiny").iterdir())) == 1
    info = (folder / "model-info.txt").read_text()
    assert "Total: 312" in info
    assert "hidden/kernel" in info
    assert "AffineNetwork" in info
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_summary_describes_the_last_state(undisturbed):
    folder, summary = undisturbed
    state = state_at(folder, 6)
    assert summary["params_sha256"] == fingerprints.sha256(state.params)
    assert summary["ema_sha256"] == fingerprints.sha256(state.ema)
    assert summary["params_sha256"] != summary["ema_sha256"]
    assert summary["step"] == 6
    assert summary["exit_reason"] == "done"
    assert summary["num_params"] == 312
    assert summary["checkpoint"] == str(folder / "checkpoint_6")
    assert summary["images_per_second"] > 0


@pytest.mark.parametrize(("use_ema", "digest"), [(True, "ema_sha256"), (False, "params_sha256")])
def test_an_evaluation_names_the_parameters_as_training_did(
    undisturbed, tmp_path, monkeypatch, use_ema, digest
):
    monkeypatch.setattr(results, "draw", lambda *_: None)
    folder, trained = undisturbed
    made = evaluator.Evaluator(
        output_dir=str(tmp_path),
        checkpoint_path=str(folder),
        likelihoods={},
        variational_bound=VariationalBound(num_times=2),
        use_ema=use_ema,
    )
    scored = made.run(tiny.model(), tiny.config())
    names = [name for name in scored if name in ("ema_sha256", "params_sha256")]
    assert names == [digest]
    assert scored[digest] == trained[digest]


def test_rows_are_due_at_their_periods(undisturbed):
    folder, _ = undisturbed
    kinds = {
        row["step"]: {name.split("/")[0] for name in row if name != "step"} for row in rows(folder)
    }
    assert kinds == {3: {"train"}, 4: {"eval"}, 6: {"train", "eval"}}
    timed = metrics.read_rows(folder / "metrics.jsonl")[-1]
    assert timed["time/images_per_second"] > 0
    assert timed["train/learning_rate"] == pytest.approx(1e-2)


def test_evaluation_is_the_bound_of_the_average_over_every_image(undisturbed):
    """Again, in one batch without padding, image by image."""
    folder, summary = undisturbed
    key_eval = jax.random.split(jax.random.key(0), 3)[2]
    (batch,) = batches.eval_batches(tiny.split(), 20)
    ema = state_at(folder, 6).ema
    arrays = {name: jnp.asarray(each) for name, each in batch.items()}
    found = np.asarray(jax.jit(tiny.model().eval_fn)(ema, arrays, key_eval)["bpd"])
    assert found.shape == (20,)
    np.testing.assert_allclose(summary["bpd"], found.mean(), rtol=1e-6)
    np.testing.assert_allclose(summary["bpd_stderr"], found.std(ddof=1) / 20**0.5, rtol=1e-5)
    assert rows(folder)[-1]["eval/images"] == 20


def test_training_lowers_the_bound(undisturbed):
    folder, _ = undisturbed
    by_step = {row["step"]: row for row in rows(folder)}
    assert by_step[6]["eval/bpd"] < by_step[4]["eval/bpd"]


def test_the_same_command_twice_gives_the_same_numbers(undisturbed, tmp_path):
    run(tmp_path / "again")
    assert outcome(tmp_path / "again") == outcome(undisturbed[0])


@pytest.mark.full
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


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


QUICK_CUTS = [(2, False), (3, True), (4, True), (5, False), (6, True)]


@pytest.mark.full_cases("[2-5]-.*")
@pytest.mark.parametrize(
    ("step", "before_row"),
    [
        pytest.param(step, before, marks=() if (step, before) in QUICK_CUTS else pytest.mark.full)
        for step in range(1, 7)
        for before in (True, False)
    ],
)
def test_cut_off_anywhere_and_started_again(undisturbed, tmp_path, monkeypatch, step, before_row):
    """Dies at a step, before or after its row is written and its checkpoint saved."""
    write, stop_at = metrics.MetricsLog.write, StopRequest.stop_at

    def dying_write(log, at, values):
        if at == step:
            raise Killed
        return write(log, at, values)

    def dying_stop_at(stop, at):
        if at == step + 1:
            raise Killed
        return stop_at(stop, at)

    with monkeypatch.context() as patch:
        if before_row:
            patch.setattr(metrics.MetricsLog, "write", dying_write)
        else:
            patch.setattr(StopRequest, "stop_at", dying_stop_at)
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
    assert "trying the one before it" in caplog.text
    assert (folder / "damaged_checkpoint_6").is_dir()


def test_rows_beyond_the_restored_step_are_written_anew(tmp_path):
    """Not kept: the command may have changed since."""
    folder = tmp_path / "run"
    run(folder)
    before = rows(folder)
    shutil.rmtree(folder / "checkpoint_6")
    run(folder, seed=1)
    assert rows(folder)[:2] == before[:2]
    assert rows(folder)[2]["step"] == 6
    assert rows(folder)[2] != before[2]


def test_extending_a_run(tmp_path):
    """Six steps, then on to nine: the parameters of nine at once."""
    run(tmp_path / "long", 9)
    run(tmp_path / "extended", 6)
    run(tmp_path / "extended", 9)
    assert outcome(tmp_path / "extended")[0] == outcome(tmp_path / "long")[0]


def signal_at(monkeypatch, step):
    """Sends this process SIGTERM while it is at a step."""
    stop_at = StopRequest.stop_at

    def asking(stop, at):
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)
            while not stop.requested:
                pass
        return stop_at(stop, at)

    monkeypatch.setattr(StopRequest, "stop_at", asking)


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


def exploding(at_step):
    """Plain gradient descent with a step of infinite length at one step."""
    return optax.sgd(lambda step: jnp.where(step == at_step - 1, jnp.inf, 1e-3))


@pytest.mark.full_cases("(4-2|1-None)")
@pytest.mark.parametrize(("at_step", "good"), [(1, None), (4, 2), (6, 4)])
def test_divergence_keeps_the_last_good_checkpoint(tmp_path, at_step, good):
    folder = tmp_path / "run"
    with pytest.raises(checks.NonFiniteError, match=f"Step {at_step} is not finite") as error:
        run(folder, optimizer=exploding(at_step))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["exit_reason"] == "non_finite"
    assert summary["params_sha256"] is None
    assert summary["step"] == at_step
    assert summary["error"].startswith(f"Step {at_step} is not finite")
    if good is None:
        assert "No checkpoint had been saved yet" in str(error.value)
        assert saving.saved_steps(folder) == []
        return
    assert f"The last good checkpoint is {folder / f'checkpoint_{good}'}" in str(error.value)
    assert saving.saved_steps(folder)[-1] == good
    shapes = jax.eval_shape(lambda: tiny.model().init(jax.random.key(0), tiny.SHAPE))
    params = saving.restore_params(folder, shapes, ema=False).params
    assert fingerprints.all_finite(params)


def test_evaluation_that_is_not_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "over_batches", lambda *_: {"bpd": np.asarray([np.inf])})
    with pytest.raises(checks.NonFiniteError, match="evaluation at step 4 is not finite"):
        run(tmp_path / "run")


def test_starting_from_another_run(undisturbed, tmp_path):
    folder, _ = undisturbed
    source = RestoreCheckpointConfig(path=str(folder / "checkpoint_4"))
    summary = run(tmp_path / "run", restore=source)
    assert summary["params_sha256"] == undisturbed[1]["params_sha256"]
    assert [row["step"] for row in rows(tmp_path / "run")] == [6]
    fresh = dataclasses.replace(source, optimizer="reset", step="reset")
    summary = run(tmp_path / "fresh", 2, restore=fresh)
    assert summary["step"] == 2
    assert [row["step"] for row in rows(tmp_path / "fresh")] == [2]
    report = (tmp_path / "fresh" / "warm-start.txt").read_text()
    assert report.startswith(f"Warm start from {folder / 'checkpoint_4'}.\n  params")
    assert "optimizer/" in report


def test_two_runs_in_one_directory(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with open(folder / "run.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="for one run at a time, and .*run is in use"):
            run(folder)
        assert [each.name for each in folder.iterdir()] == ["run.lock"]


def test_the_best_stays(tmp_path):
    folder = tmp_path / "run"
    save = saving.SaveCheckpointConfig(period=1, keep=1, keep_best=2)
    config = saving.CheckpointConfig(save=save)
    run(folder, checkpoints=config, eval_period=2, optimizer=optax.sgd(1e-2))
    bpd = {row["step"]: row["eval/bpd"] for row in rows(folder) if "eval/bpd" in row}
    best = sorted(bpd, key=bpd.get)[:2]
    assert set(bpd) == {2, 4, 6}
    assert saving.saved_steps(folder) == sorted({*best, 6})
    for changes, dataset in (({}, None), ({"eval_period": None}, tiny.config(8))):
        trainer = tiny.trainer(tmp_path / "no", checkpoints=config, **changes)
        for method in (trainer.run, trainer.dry_run):
            with pytest.raises(ValueError, match="keep_best"):
                method(tiny.model(), tiny.config(), dataset)
    assert not (tmp_path / "no").exists()


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


def test_another_seed_in_the_same_directory_is_told(tmp_path, caplog, monkeypatch):
    run(tmp_path / "run", 4)
    described = tiny.trainer(tmp_path / "run", 6, seed=3)
    planned = described.dry_run(tiny.model(image_shape=tiny.SHAPE), tiny.config(8))
    assert planned.count("WARNING: ") == 3  # `image_shape` of the model is the other
    assert "\nWARNING: seed was 0 and is now 3. Training" in planned
    tiny.use_tiny_data(monkeypatch, 21)
    run(tmp_path / "run", 6, seed=3, dataset=tiny.config(8))
    assert "seed was 0 and is now 3" in caplog.text
    assert "batch_size was 4" in caplog.text
    assert "eval_dataset_sha256 was" in caplog.text
    assert "optimizer was" not in caplog.text


def test_another_meaning_of_the_output_in_the_same_directory_is_refused(tmp_path):
    run(tmp_path / "run", 2)
    time = linear.Linear(gamma_min=-7.0, gamma_max=5.0)
    with pytest.raises(ValueError, match=r"model\.time\.gamma_min was -7\.8.* is now -7\.0"):
        run(tmp_path / "run", 4, model=tiny.model(time=time))
    with pytest.raises(ValueError, match=r"was trained with another meaning.*gamma_min"):
        run_inputs.load_params(tiny.model(time=time), tiny.SHAPE, str(tmp_path / "run"), True)
    found = run_inputs.load_params(tiny.model(), tiny.SHAPE, str(tmp_path / "run"), True)
    assert found.step == 2


def test_a_warm_start_from_another_meaning_is_told(undisturbed, tmp_path, caplog):
    restore = RestoreCheckpointConfig(path=str(undisturbed[0] / "checkpoint_4"), step="reset")
    run(tmp_path / "same", 1, restore=restore)
    assert "another meaning" not in caplog.text
    time = linear.Linear(gamma_min=-7.0, gamma_max=5.0)
    run(tmp_path / "other", 1, model=tiny.model(time=time), restore=restore)
    assert "checkpoint_4 was trained with another meaning" in caplog.text
    assert "gamma_min was -7.8" in caplog.text


def test_what_training_draws_is_no_meaning_of_the_output():
    """As `model.time` is, whose name it begins with."""
    saved, now = {"model.time_sampler": "Uniform"}, {"model.time_sampler": "Importance"}
    assert facts.changed(saved, now, facts.MEANING) == []
    assert len(facts.changed(saved, now)) == 1


def test_another_network_in_the_same_directory_is_refused(tmp_path):
    run(tmp_path / "run", 2)
    with pytest.raises(ValueError, match="does not fit"):
        run(tmp_path / "run", 4, model=tiny.model(width=16))


def test_any_optax_transformation_will_do(tmp_path):
    summary = run(tmp_path / "run", 3, optimizer=optax.sgd(1e-2))
    assert summary["step"] == 3
    assert "train/learning_rate" not in rows(tmp_path / "run")[0]


def test_accumulation_is_known_to_the_average(tmp_path):
    """Parameters move at every second step, and so does their average."""
    optimizer = optimizers.AdamW(learning_rate=1e-2, warmup_steps=0, accumulation_steps=2)
    two = run(tmp_path / "two", 2, optimizer=optimizer)
    three = run(tmp_path / "three", 3, optimizer=optimizer)
    assert two["params_sha256"] == three["params_sha256"] != two["ema_sha256"]
    assert two["ema_sha256"] == three["ema_sha256"]


def test_without_an_evaluation_split(tmp_path):
    trainer = tiny.trainer(tmp_path / "run", 3)
    summary = trainer.run(tiny.model(), tiny.config())
    assert summary["bpd"] is None
    assert [row["step"] for row in rows(tmp_path / "run")] == [3]


def test_a_few_batches_of_evaluation(tmp_path):
    run(tmp_path / "run", 3, eval_steps=2)
    assert rows(tmp_path / "run")[0]["eval/images"] == 16


def test_evaluation_at_the_end_only(tmp_path):
    run(tmp_path / "run", 5, eval_period=None, log_period=2)
    found = {row["step"]: "eval/bpd" in row for row in rows(tmp_path / "run")}
    assert found == {2: False, 4: False, 5: True}


def test_images_must_fit_the_model(tmp_path):
    with pytest.raises(ValueError, match="levels=4"):
        run(tmp_path / "run", model=tiny.model(encoding=models.Encoding(levels=4)))
    other = tiny.model(image_shape=(8, 8, 1))
    with pytest.raises(ValueError, match="image_shape"):
        run(tmp_path / "run", model=other)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_steps": 0}, "train_steps"),
        ({"log_period": 0}, "log_period"),
        ({"eval_period": 0}, "eval_period"),
        ({"eval_steps": -1}, "eval_steps"),
        ({"ema_rate": 1.0}, "ema_rate"),
        ({"num_microbatches": 0}, "num_microbatches"),
        ({"model_dir": ""}, "model_dir"),
    ],
)
def test_numbers_out_of_range(tmp_path, changes, message):
    fields = {"model_dir": tmp_path, "train_steps": 6} | changes
    model_dir = fields.pop("model_dir")
    with pytest.raises(ValueError, match=message):
        tiny.trainer(model_dir, fields.pop("train_steps"), **fields)


def test_microbatches_must_divide_the_batch_size(tmp_path):
    with pytest.raises(ValueError, match=r"num_microbatches=3"):
        run(tmp_path / "run", num_microbatches=3)


def test_dry_run_writes_nothing_and_reads_no_images(tmp_path, monkeypatch):
    def unread(config):
        raise AssertionError("images were read")

    monkeypatch.setattr(loading, "load_split", unread)
    model = tiny.model(image_shape=tiny.SHAPE)
    mesh = partitioning.PjitPartitioner(mesh_shape={"data": 2, "fsdp": 2})
    trainer = tiny.trainer(tmp_path / "run", partitioner=mesh)
    text = trainer.dry_run(model, tiny.config(), tiny.config(8))
    assert "Total: 312" in text
    assert "Mesh: data=2 x fsdp=2 x model=1, 4 devices." in text
    assert "4 images of (4, 4, 1), 1 on a device at a time" in text
    # By hand: a product of [4, 2] with [2, 8] and one of [4, 8] with [8, 32], and the gradients of
    # both for what is to be learnt: not for the input of the first.
    assert f"FLOPs of a step, over all devices: {2 * 4 * 8 * (2 * 2 + 3 * 32):.4g}." in text
    assert text.endswith("Would train from scratch.")
    assert "activations, estimated" in text
    assert list(tmp_path.iterdir()) == []


def test_dry_run_says_that_activations_are_not_divided_by_model(tmp_path):
    found = {}
    for size in (1, 2):
        mesh = partitioning.PjitPartitioner(mesh_shape={"data": 1, "model": size})
        model = tiny.model(image_shape=tiny.SHAPE)
        found[size] = tiny.trainer(tmp_path, partitioner=mesh).dry_run(model, tiny.config())
    assert "Activations are not divided by `model`" not in found[1]
    assert "  activations, at most " in found[2]
    assert "Activations are not divided by `model`, which splits some of them." in found[2]


def test_dry_run_of_a_model_without_a_shape(tmp_path):
    with pytest.raises(ValueError, match="Bind IMAGE_SHAPE"):
        tiny.trainer(tmp_path).dry_run(tiny.model(), tiny.config())


def test_dry_run_sees_what_training_would_restore(undisturbed, tmp_path):
    folder, _ = undisturbed
    shape = {"image_shape": tiny.SHAPE}
    text = tiny.trainer(folder, 9).dry_run(tiny.model(**shape), tiny.config())
    assert text.endswith(f"Would train from {folder / 'checkpoint_6'}.")
    text = tiny.trainer(folder, 6).dry_run(tiny.model(**shape), tiny.config())
    assert f"Nothing left to train: {folder} is at step 6, as asked." in text
    with pytest.raises(ValueError, match="does not fit"):
        tiny.trainer(folder).dry_run(tiny.model(width=16, **shape), tiny.config())


@pytest.mark.parametrize(
    ("name", "words", "steps"),
    [("step", "before step 1 of 6", []), ("evaluate", "after step 3 of 6", [3])],
)
def test_asked_to_stop_while_compiling(tmp_path, name, words, steps):
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
