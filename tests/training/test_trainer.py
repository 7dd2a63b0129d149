"""The loop: what a run writes, when it reports and evaluates, and what it refuses."""

import contextlib
import dataclasses
import fcntl
import json
import math
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from states import save
from tiny_runs import rows, run

from idode_gin import checks, models
from idode_gin.checkpoints import saving
from idode_gin.checkpoints.saving import RestoreCheckpointConfig
from idode_gin.devices import partitioning
from idode_gin.encoding import Encoding
from idode_gin.evaluation import evaluator, results
from idode_gin.feed import batches, loading
from idode_gin.losses.bound import VariationalBound
from idode_gin.losses.second_order import SecondOrder
from idode_gin.reports import fingerprints, metrics, plots
from idode_gin.runs import means as evaluation
from idode_gin.runs import resuming, run_inputs
from idode_gin.schedules.time.base import AbstractTime
from idode_gin.schedules.time.learned_linear import LearnedLinear
from idode_gin.time_samplers.importance import Importance
from idode_gin.training import meters, optimizers, setup


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


def test_a_run_ends_well_without_its_last_plot(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(plots, "plot_integrand", fail)
    monkeypatch.setattr(plots, "plot_bpd_curve", fail)
    summary = tiny.trainer(tmp_path, 2).run(tiny.model(), tiny.config(), tiny.config())
    assert summary["exit_reason"] == "done"
    assert caplog.text.count("not drawn: RESOURCE_EXHAUSTED") >= 2


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
    assert (summary["train_steps"], summary["error"]) == (6, None)
    assert summary["data"] == summary["eval_data"] == tiny.split().facts()
    (last,) = (row for row in rows(folder) if row["step"] == 6)
    assert summary["bpd"] == last["eval/bpd"]
    assert summary["bpd_stderr"] == last["eval/bpd_stderr"]


def test_speed_is_images_over_the_seconds_of_their_steps(undisturbed):
    """The first step compiles and is left out: rows of 2, 1 and 2 steps of 4 images."""
    folder, summary = undisturbed
    timed = metrics.read_rows(folder / "metrics.jsonl")
    seconds = [row["time/step_seconds"] for row in timed]
    speeds = [row["time/images_per_second"] for row in timed]
    assert speeds == pytest.approx([4 / each for each in seconds])
    whole = np.dot([2, 1, 2], seconds)
    assert summary["images_per_second"] == pytest.approx(5 * 4 / whole)


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
    assert timed["train/learning_rate"] == pytest.approx(1e-2)


def test_evaluation_is_the_bound_of_the_average_over_every_image(undisturbed):
    """Recompute it in one batch without padding, image by image."""
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


def exploding(at_step):
    """Return gradient descent whose learning rate is infinite at one step."""
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
        assert "No checkpoint had been saved" in str(error.value)
        assert "finetune.gin" not in str(error.value)  # which needs a checkpoint
        assert saving.saved_steps(folder) == []
        return
    assert f"The last good checkpoint is {folder / f'checkpoint_{good}'}" in str(error.value)
    assert "which resumes. To repeat the warm-up" in str(error.value)
    assert saving.saved_steps(folder)[-1] == good
    shapes = jax.eval_shape(lambda: tiny.model().init(jax.random.key(0), tiny.SHAPE))
    params = saving.restore_params(folder, shapes, ema=False).params
    assert fingerprints.all_finite(params)


def test_evaluation_that_is_not_finite(tmp_path, monkeypatch):
    kind, folder = checks.NonFiniteEvaluationError, tmp_path / "run"
    with monkeypatch.context() as broken:
        broken.setattr(evaluation, "over_batches", lambda *_: {"bpd": np.asarray([np.inf])})
        with pytest.raises(kind, match=f"step 4 .* evaluate {folder}/checkpoint_4 again. Move"):
            run(folder)
        with pytest.raises(kind, match="step 4 .*checkpoint_4 again"):
            run(folder)
    (folder / "checkpoint_4").rename(tmp_path / "elsewhere")
    run(folder)
    assert json.loads((folder / "summary.json").read_text())["exit_reason"] == "done"


def test_evaluation_that_is_not_finite_without_a_checkpoint_of_its_step(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "over_batches", lambda *_: {"bpd": np.asarray([np.inf])})
    with pytest.raises(checks.NonFiniteEvaluationError, match=r"step 3 .*checkpoint_2\. Lower"):
        run(tmp_path / "run", eval_period=3)


def test_two_runs_in_one_directory(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with open(folder / "run.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="for one run at a time, and .*run is in use"):
            run(folder)
        assert [each.name for each in folder.iterdir()] == ["run.lock"]


@pytest.mark.parametrize(
    ("owner", "name", "optimizer"),
    [(meters.Meters, "lap", None), (metrics.MetricsLog, "write", exploding(4))],
    ids=["before a row", "before a step that diverges"],
)
def test_a_run_whose_folder_is_moved_away_leaves_its_successor_alone(
    tmp_path, monkeypatch, owner, name, optimizer
):
    folder, call, others = tmp_path / "run", getattr(owner, name), [10, 20, 30, 40, 50]

    def moved(self, step, *more):
        found = call(self, step, *more)
        if step == 3:
            while saving.saved_steps(folder) != [2]:
                time.sleep(0.01)
            folder.rename(tmp_path / "away")
            save(folder, *others)
            (folder / "run.lock").write_text("of another run")
        return found

    monkeypatch.setattr(owner, name, moved)
    changes = {} if optimizer is None else {"optimizer": optimizer}
    with pytest.raises(OSError, match="run was deleted, moved or replaced while this run"):
        run(folder, **changes)
    assert saving.saved_steps(folder) == others
    assert {each.name for each in folder.iterdir() if each.is_file()} == {"run.lock"}


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


def test_any_optax_transformation_will_do(tmp_path):
    summary = run(tmp_path / "run", 3, optimizer=optax.sgd(1e-2))
    assert summary["step"] == 3
    assert "train/learning_rate" not in rows(tmp_path / "run")[0]


def test_the_average_follows_accumulated_updates(tmp_path):
    """Parameters change at every second step, and so does their average."""
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
    trainer = tiny.trainer(tmp_path / "run", 3, eval_steps=2)
    summary = trainer.run(tiny.model(), tiny.config(), tiny.config(8, name="other"))
    assert rows(tmp_path / "run")[0]["eval/images"] == 16
    assert [summary[name]["dataset"] for name in ("data", "eval_data")] == ["tiny", "other"]


def test_a_few_batches_are_spread_over_the_split():
    """A folder of images is sorted by class."""
    images = setup.Images(tiny.split(), tiny.config(4), partitioning.PjitPartitioner())
    found = np.concatenate([each["index"] for each in images.eval_batches(2)])
    np.testing.assert_array_equal(found, [0, 3, 5, 8, 11, 14, 16, 19])
    for number in (7, None):
        found = np.concatenate([each["index"] for each in images.eval_batches(number)])
        np.testing.assert_array_equal(found, np.arange(20))


def test_evaluation_at_the_end_only(tmp_path):
    run(tmp_path / "run", 5, eval_period=None, log_period=2)
    found = {row["step"]: "eval/bpd" in row for row in rows(tmp_path / "run")}
    assert found == {2: False, 4: False, 5: True}


def test_evaluation_before_training(tmp_path):
    settings = {"eval_period": None, "run_eval_before_training": True}
    (tmp_path / "run").mkdir()  # as a run leaves it that is killed before its first checkpoint
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0, "eval/bpd": 9.0}\n')
    run(tmp_path / "run", 4, **settings)
    first, *_, last = rows(tmp_path / "run")
    names = {"step", "eval/bpd", "eval/images"}
    assert first["step"] == 0
    assert names <= set(first)
    assert not any(name.startswith("train/") for name in first)
    assert last["eval/bpd"] != first["eval/bpd"]
    whole = rows(tmp_path / "run")
    run(tmp_path / "run", 6, **settings)  # a run that is resumed does not repeat it
    after = rows(tmp_path / "run")
    assert after[: len(whole)] == whole
    assert [row["step"] for row in after if "eval/bpd" in row] == [0, 4, 6]
    with pytest.raises(ValueError, match="`run_eval_before_training` needs an evaluation split"):
        tiny.trainer(tmp_path / "none", 3, run_eval_before_training=True).run(
            tiny.model(), tiny.config()
        )


def test_the_start_is_checked_once_and_first(tmp_path, monkeypatch):
    calls = []

    @contextlib.contextmanager
    def begin():
        calls.append("begin")
        yield

    def load(*_):
        calls.append("load")
        raise KeyError

    monkeypatch.setattr(resuming, "check_begun", lambda *_: calls.append("check"))
    monkeypatch.setattr(run_inputs, "load", load)
    with pytest.raises(KeyError):
        tiny.trainer(tmp_path).run(tiny.model(), tiny.config(), begin=begin)
    assert calls == ["check", "begin", "load"]


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
    assert "Data: tiny / train; tiny / train evaluated every 4 steps." in text
    assert f"Output: {tmp_path / 'run'}\n" in text
    assert "Mesh: data=2 x fsdp=2 x model=1, 4 devices." in text
    assert "4 images of (4, 4, 1), 1 on a device at a time" in text
    # By hand: a product of [4, 2] with [2, 8] and one of [4, 8] with [8, 32], and the gradients of
    # both with respect to parameters: not to the input of the first.
    assert f"FLOPs of a step, over all devices: {2 * 4 * 8 * (2 * 2 + 3 * 32):.4g}." in text
    assert text.endswith("Would train from scratch.")
    assert "activations, estimated" in text
    full = trainer.dry_run(model, tiny.config(), tiny.config(8), full=True)
    assert full.partition("Mesh: ")[2] == text.partition("Mesh: ")[2]
    assert "kernel" in full
    assert "kernel" not in text
    assert list(tmp_path.iterdir()) == []


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineTime(AbstractTime):
    """A user's own gamma(t): any class but `Linear`."""

    ends: tuple[float, float] = (-8.0, 5.0)

    @property
    def gamma_min(self):
        return self.ends[0]

    @property
    def gamma_max(self):
        return self.ends[1]

    def gamma(self, t):
        fraction = (1 - jnp.cos(math.pi * t)) / 2
        return self.gamma_min + (self.gamma_max - self.gamma_min) * fraction


def test_an_own_gamma_of_t_that_changes_nothing_is_reported(tmp_path, monkeypatch, capsys):
    line = "WARNING: Only the ends of CosineTime affect training: Importance draws"
    shape = {"image_shape": tiny.SHAPE}
    trainer = tiny.trainer(tmp_path / "run", 1, eval_period=None)
    ignored = tiny.model(time=CosineTime(), time_sampler=Importance(), **shape)
    assert line in trainer.dry_run(ignored, tiny.config())
    assert "WARNING" not in trainer.dry_run(tiny.model(time=CosineTime(), **shape), tiny.config())
    assert "WARNING" not in trainer.dry_run(
        tiny.model(time_sampler=Importance(), **shape), tiny.config()
    )
    tiny.use_tiny_data(monkeypatch)
    trainer.run(ignored, tiny.config())
    assert line in capsys.readouterr().out


def test_a_learned_gamma_of_t_that_the_loss_does_not_train_is_reported(tmp_path):
    line = "WARNING: LearnedLinear keeps its initial or restored parameters: the loss SecondOrder"
    trainer = tiny.trainer(tmp_path / "run", 1, eval_period=None)
    model = tiny.model(time=LearnedLinear(), image_shape=tiny.SHAPE)
    assert "WARNING" not in trainer.dry_run(model, tiny.config())
    second = dataclasses.replace(model, loss=SecondOrder())
    assert line in trainer.dry_run(second, tiny.config())


def test_dry_run_says_that_activations_are_not_divided_by_model(tmp_path):
    found = {}
    for size in (1, 2):
        mesh = partitioning.PjitPartitioner(mesh_shape={"data": 1, "model": size})
        model = tiny.model(image_shape=tiny.SHAPE)
        found[size] = tiny.trainer(tmp_path, partitioner=mesh).dry_run(model, tiny.config())
    assert "Activations are not divided by `model`" not in found[1]
    assert "  activations, at most " in found[2]
    assert "Activations are not divided by `model`, which splits some of them." in found[2]


def test_dry_run_counts_the_levels_that_the_decoder_holds(tmp_path):
    rows = {}
    for levels in (7, 300, 1 << 16):
        model = tiny.model(image_shape=tiny.SHAPE, encoding=Encoding(levels=levels))
        text = tiny.trainer(tmp_path, num_microbatches=2).dry_run(model, tiny.config(1024))
        rows[levels] = float(re.search(r"levels of the decoder +([\d.]+) MiB", text)[1])
    held = {levels: Encoding(levels=levels).levels_at_once for levels in rows}
    assert (held[7], held[300]) == (7, 300)
    for levels, size in rows.items():
        assert size == pytest.approx(4 * 512 * 16 * held[levels] / 2**20, abs=0.06)


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
    with pytest.raises(
        ValueError, match=r"another model: model\.network\.width was 8 and is now 16"
    ):
        tiny.trainer(folder).dry_run(tiny.model(width=16, **shape), tiny.config())
