"""Training with a gamma(t) that has parameters: resuming, refusals, warm starts, evaluation."""

import os
import pathlib
import signal
import subprocess
import sys

import jax
import killed_training
import numpy as np
import pytest
import tiny
from tiny_runs import outcome, run

from idode_gin.checkpoints import saving
from idode_gin.checkpoints.config import RestoreCheckpointConfig
from idode_gin.losses.first_order import FirstOrder
from idode_gin.losses.unweighted import Unweighted
from idode_gin.runs import run_inputs
from idode_gin.schedules.time.learned_linear import LearnedLinear
from idode_gin.schedules.time.linear import gamma_min_for_levels
from idode_gin.schedules.time.tabulated import Tabulated
from idode_gin.training import optimizers

GAMMA_MIN = gamma_min_for_levels(tiny.LEVELS)
MODEL = tiny.model(time=LearnedLinear(gamma_min=GAMMA_MIN), image_shape=tiny.SHAPE)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run of four steps, and its folder."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.use_tiny_data(patch)
        folder = tmp_path_factory.mktemp("learned") / "run"
        return folder, run(folder, 4, model=MODEL)


def restored(folder, model=MODEL, *, use_ema=True):
    return run_inputs.load_params(model, tiny.SHAPE, str(folder), use_ema).params


def test_the_ends_are_trained_averaged_and_described(learned):
    folder, summary = learned
    last, average = (
        restored(folder, use_ema=ema)["time_schedule"]["ends"] for ema in (False, True)
    )
    for name, initial in {"gamma_min": GAMMA_MIN, "gamma_max": 5.0}.items():
        moved = abs(float(last[name]) - initial)
        assert moved > 1e-3
        assert 0 < abs(float(average[name]) - initial) < moved
    described = (folder / "model-info.txt").read_text()
    assert "time_schedule/ends/gamma_min" in described
    assert summary["num_params"] == sum(np.size(leaf) for leaf in jax.tree.leaves(restored(folder)))


@pytest.mark.parametrize(("loss", "is_adapted"), [(FirstOrder(), True), (Unweighted(), False)])
def test_a_loss_that_does_not_train_time_leaves_its_table(tmp_path, loss, is_adapted):
    model = tiny.model(time=Tabulated(gamma_min=GAMMA_MIN, bins=4, adapt_period=1), loss=loss)
    run(tmp_path / "run", 2, model=model)
    masses = restored(tmp_path / "run", model, use_ema=False)["time_schedule"]["interior"]
    moved = [np.ptp(each) > 1e-3 for each in jax.tree.leaves(masses)]
    assert moved == [is_adapted]


@pytest.mark.parametrize("name", killed_training.LEARNED)
def test_a_run_that_is_cut_off_ends_the_same(name, tmp_path):
    """Sums that a table follows are in the checkpoint, here of step 2 of the 3 they are of."""
    model = killed_training.model(name)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole, 4, model=model)
    run(cut, 2, model=model)
    initial = jax.tree.leaves(restored(cut, model, use_ema=False)["time_schedule"])
    run(cut, 4, model=model)
    assert outcome(cut)[0] == outcome(whole)[0]
    final = jax.tree.leaves(restored(cut, model, use_ema=False)["time_schedule"])
    assert all(np.any(a != b) for a, b in zip(initial, final, strict=True))


def test_weight_decay_leaves_gamma_alone():
    params = MODEL.init(jax.random.key(0), tiny.SHAPE)
    decayed = optimizers.decayed(params)
    assert not any(jax.tree.leaves(decayed.pop("time_schedule")))
    assert any(jax.tree.leaves(decayed))


def test_a_checkpoint_of_another_gamma_is_refused_by_name(learned, undisturbed, tmp_path):
    fixed = tiny.model()
    with pytest.raises(ValueError, match=r"model\.time was LearnedLinear and is now Linear"):
        run(learned[0], 6, model=fixed)
    with pytest.raises(ValueError, match=r"time_schedule/ends/gamma_m"):
        restored(learned[0], fixed)
    for source, model in ((learned[0], fixed), (undisturbed[0], MODEL)):
        restore = RestoreCheckpointConfig(path=str(source), step="reset")
        with pytest.raises(ValueError, match=r"\n  params/time_schedule/ends/gamma_max: "):
            run(tmp_path / "run", 1, model=model, restore=restore)


@pytest.mark.parametrize("direction", ["learned", "fixed"])
def test_a_rule_warm_starts_one_from_the_other(learned, undisturbed, tmp_path, direction):
    """With a learning rate of nearly zero, so that what was restored is still there."""
    still = optimizers.AdamW(learning_rate=1e-12, warmup_steps=0)
    source, model, rules = {
        "learned": (undisturbed[0], MODEL, {".*/time_schedule/.*": "reset"}),
        "fixed": (learned[0], tiny.model(), {".*/time_schedule/.*": "drop"}),
    }[direction]
    restore = RestoreCheckpointConfig(path=str(source), step="reset", rules=rules)
    run(tmp_path / "run", 1, model=model, restore=restore, optimizer=still)
    before = restored(source, tiny.model() if direction == "learned" else MODEL, use_ema=False)
    after = restored(tmp_path / "run", model, use_ema=False)
    np.testing.assert_allclose(after["out"]["kernel"], before["out"]["kernel"], atol=1e-7)
    if direction == "learned":
        assert float(after["time_schedule"]["ends"]["gamma_max"]) == pytest.approx(5.0)


@pytest.mark.full
@pytest.mark.parametrize("name", killed_training.TIMES)
def test_a_run_that_is_killed_ends_the_same(name, tmp_path):
    """By SIGKILL after step 3, of which the checkpoint of step 2 is left."""
    script = pathlib.Path(killed_training.__file__)
    root = script.parents[2]
    command = [sys.executable, script, name, "3", tmp_path / "cut"]
    paths = os.pathsep.join(map(str, (root, script.parent)))
    killed = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": paths}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert saving.saved_steps(tmp_path / "cut") == [2]
    model = killed_training.model(name)
    run(tmp_path / "cut", 5, model=model)
    run(tmp_path / "whole", 5, model=model)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


RESET, UNUSED = ".*/time_schedule/.*", ".*/time_schedule/interior/.*"
"""gamma(t) to initialize, and what the checkpoint has of another."""


@pytest.mark.full
@pytest.mark.parametrize(
    ("source", "target", "missing"),
    [
        ("LearnedLinear", "Monotone", "interior/l1/bias"),
        ("Monotone", "Tabulated", "interior/log_masses"),
        ("Tabulated", "LearnedLinear", "interior/log_masses"),
    ],
)
def test_one_learned_gamma_and_another(source, target, missing, tmp_path):
    """Refused by name in the same directory and as a warm start, which a rule allows."""
    before, model = killed_training.model(source), killed_training.model(target)
    run(tmp_path / "run", 2, model=before)
    with pytest.raises(ValueError, match=rf"model\.time was {source} and is now {target}"):
        run(tmp_path / "run", 4, model=model)
    with pytest.raises(ValueError, match="time_schedule/interior"):
        restored(tmp_path / "run", model)
    restore = RestoreCheckpointConfig(path=str(tmp_path / "run"), step="reset")
    with pytest.raises(ValueError, match=rf"params/time_schedule/{missing}: "):
        run(tmp_path / "new", 1, model=model, restore=restore)
    rules = {RESET: "reset"} | ({} if source == "LearnedLinear" else {UNUSED: "drop"})
    restore = RestoreCheckpointConfig(path=str(tmp_path / "run"), step="reset", rules=rules)
    still = optimizers.AdamW(learning_rate=1e-12, warmup_steps=0)
    run(tmp_path / "new", 1, model=model, restore=restore, optimizer=still)
    old, new = (
        restored(folder, each, use_ema=False)
        for folder, each in ((tmp_path / "run", before), (tmp_path / "new", model))
    )
    np.testing.assert_allclose(new["out"]["kernel"], old["out"]["kernel"], atol=1e-7)
    assert float(new["time_schedule"]["ends"]["gamma_max"]) == pytest.approx(5.0)
