"""What stays of a run's checkpoints, in what order the others go, and room for the next."""

import collections
import dataclasses
import os
import pathlib
import re
import shutil
import threading

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from idode_gin import types
from idode_gin.checkpoints import files
from idode_gin.checkpoints import saving as checkpoints

SaveConfig = checkpoints.SaveCheckpointConfig


def state_of(step, size=64):
    params = {"kernel": jnp.full((size,), float(step))}
    return types.TrainState(
        step=jnp.int32(step), params=params, ema=params, opt_state={}, window={}, guard={}
    )


def saving(directory, bpd=None, **config):
    config = checkpoints.CheckpointConfig(save=SaveConfig(**config))
    return checkpoints.Checkpoints(directory, config, {}, ({} if bpd is None else bpd).get)


STEPS = [2, 4, 6, 8, 10, 12]
BPD = {step: (bpd, 10) for step, bpd in {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.0, 12: 2.7}.items()}


@pytest.mark.parametrize(
    ("config", "stay"),
    [
        ({"keep": None}, STEPS),
        ({"keep": 2}, [10, 12]),
        ({"keep": 9}, STEPS),
        ({"keep": 1, "keep_period": 4}, [4, 8, 12]),
        ({"keep": 1, "keep_best": 1}, [8, 12]),  # of two that are equal the newer one
        ({"keep": 1, "keep_best": 3}, [4, 6, 8, 12]),
        ({"keep": 1, "keep_best": 9}, [2, 4, 6, 8, 12]),  # 10 was not evaluated
        ({"keep": 2, "keep_best": 1, "keep_period": 6}, [6, 8, 10, 12]),
        ({"keep": 1, "checkpoint_steps": (4, 5)}, [4, 12]),
    ],
)
def test_what_stays(config, stay):
    config = SaveConfig(period=2, **config)
    doomed = config.doomed(STEPS, BPD.get)
    assert sorted(set(STEPS) - set(doomed)) == stay


def test_the_best_are_those_of_as_many_images():
    """The first evaluation was of easier images, and so no better checkpoint."""
    config, evaluated = SaveConfig(period=2, keep=1, keep_best=1), {**BPD, 2: (1.0, 3)}
    doomed = config.doomed(STEPS, evaluated.get)
    assert sorted(set(STEPS) - set(doomed)) == [2, 8, 12]


def test_the_run_directory_ends_with_what_stays(tmp_path):
    bpd = {}
    with saving(tmp_path, bpd, period=2, keep=1, keep_best=1, keep_period=6) as saved:
        for step in STEPS:
            saved.save(state_of(step))
            if step in BPD:  # known after the checkpoint is on its way only
                bpd[step] = BPD[step]
    assert checkpoints.saved_steps(tmp_path) == [6, 8, 12]
    assert {each.name for each in tmp_path.iterdir()} == {
        "checkpoint_6",
        "checkpoint_8",
        "checkpoint_12",
    }


def test_steps_beside_the_period_and_pinned_ones_stay(tmp_path):
    with saving(tmp_path, period=4, keep=1, checkpoint_steps=(2,)) as saved:
        assert [step for step in range(1, 13) if saved.is_due(step)] == [2, 4, 8, 12]
        saved.save(state_of(2))
        saved.save(state_of(4))
        assert saved.last_good() == tmp_path / "checkpoint_4"
        (tmp_path / "checkpoint_4" / "PINNED").touch()
        for step in (8, 12):
            saved.save(state_of(step))
    assert checkpoints.saved_steps(tmp_path) == [2, 4, 12]
    restored, *_ = checkpoints.restore_params(tmp_path / "checkpoint_4", state_of(0).params)
    assert float(restored["kernel"][0]) == 4


def test_nothing_is_deleted_before_its_successor_is_whole(tmp_path, monkeypatch):
    """While a checkpoint is being written, and when that fails, the one before it is there."""
    whole = collections.Counter()
    delete = files.delete

    def watched(directory, steps):
        steps = list(steps)
        newest = checkpoints.saved_steps(directory)[-1:]
        for step in steps:
            assert newest > [step]
            restored, *_ = checkpoints.restore_params(
                checkpoints.checkpoint_path(directory, newest[0]), state_of(0).params
            )
            assert float(restored["kernel"][0]) == newest[0]
            whole[step] += 1
        delete(directory, steps)

    monkeypatch.setattr(files, "delete", watched)
    with saving(tmp_path, period=1, keep=1) as saved:
        for step in (1, 2, 3):
            saved.save(state_of(step))
            assert checkpoints.saved_steps(tmp_path)[-1:] >= [step - 1] or step == 1
    assert whole == {1: 1, 2: 1}

    def refuse(*_, **__):
        raise OSError("full")

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "finalize", refuse)
    with pytest.raises(OSError, match="full"), saving(tmp_path, period=1, keep=1) as saved:
        saved.save(state_of(4))
    assert checkpoints.saved_steps(tmp_path) == [3]
    assert whole == {1: 1, 2: 1}


def test_nothing_is_deleted_before_its_successor_is_flushed(tmp_path, monkeypatch):
    """Every file of it, and the folders that name them: a power cut then loses neither."""
    flushed, delete, fsync = set(), files.delete, os.fsync

    def flushing(number):
        flushed.add(pathlib.Path(os.readlink(f"/proc/self/fd/{number}")))
        fsync(number)

    def deleting(directory, steps):
        for step in steps:
            newest = tmp_path / f"checkpoint_{step + 1}"
            assert {tmp_path, newest, *newest.rglob("*")} <= flushed
        delete(directory, steps)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(files, "delete", deleting)
    with saving(tmp_path, period=1, keep=1) as saved:
        for step in (1, 2, 3):
            saved.save(state_of(step))
    assert checkpoints.saved_steps(tmp_path) == [3]


def test_training_goes_on_while_files_are_written(tmp_path, monkeypatch):
    finalize, may_finish = ocp.StandardCheckpointHandler.finalize, threading.Event()

    def waiting(*args):
        assert may_finish.wait(60)
        return finalize(*args)

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "finalize", waiting)
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    with saving(tmp_path, period=1) as saved:
        params = {"kernel": jnp.full((64,), 5.0)}
        state = dataclasses.replace(state_of(5), params=params)
        saved.save(state)
        trained = step(params)
        assert float(trained["kernel"][0]) == 6
        assert checkpoints.saved_steps(tmp_path) == []
        may_finish.set()
    restored, *_ = checkpoints.restore_params(tmp_path, state_of(0).params, ema=False)
    assert float(restored["kernel"][0]) == 5


def test_half_a_deletion_is_no_checkpoint_and_is_finished_later(tmp_path):
    with saving(tmp_path, period=1, keep=2) as saved:
        saved.save(state_of(1))
    half = tmp_path / "deleted_checkpoint_0"
    shutil.copytree(tmp_path / "checkpoint_1" / "ema", half / "ema")
    assert checkpoints.saved_steps(tmp_path) == [1]
    with saving(tmp_path, period=1, keep=2) as saved:
        saved.save(state_of(2))
    assert not half.exists()


def test_free_disk_is_checked_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    with saving(tmp_path, period=1) as saved:
        saved.save(state_of(1))
    message = (
        r"step 2 could not be saved .*it needs about 13\.\d MB of disk space and 10\.0 MB are free"
        r".*last good one is checkpoint_1"
    )
    with pytest.raises(OSError, match=message), saving(tmp_path, period=1) as saved:
        saved.save(state_of(2, size=1_500_000))  # 6 MB, and as much of EMA
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint_1"]


@pytest.mark.parametrize(
    ("changes", "run", "message"),
    [
        ({}, {"evaluates": False}, "needs an evaluation split"),
        ({}, {"eval_period": None}, "never coincide before the last, 100"),
        ({"period": None}, {}, "never coincide"),
        ({"period": 7}, {"eval_period": 30}, "never coincide"),
        ({"period": 7}, {"eval_period": 10}, None),
        ({"period": None, "checkpoint_steps": (40,)}, {}, None),
        ({"period": None, "checkpoint_steps": (30, 120)}, {}, "never coincide"),
        ({"keep_best": None}, {"evaluates": False}, None),
    ],
)
def test_the_best_needs_evaluations_of_saved_steps(changes, run, message):
    config = dataclasses.replace(SaveConfig(period=10, keep_best=2), **changes)
    run = {"evaluates": True, "eval_period": 20, "last_step": 100} | run
    if message is None:
        config.check_best(**run)
        return
    with pytest.raises(ValueError, match=message):
        config.check_best(**run)


def test_fields_without_an_effect_are_refused():
    with pytest.raises(ValueError, match="checkpoint_steps` must be an integer, 1 or more, got"):
        SaveConfig(checkpoint_steps=(0,))
    for name in ("keep_period", "keep_best"):
        with pytest.raises(
            ValueError, match=f"with keep=None, which deletes nothing. Got {name}=4"
        ):
            SaveConfig(period=2, keep=None, **{name: 4})
    with pytest.raises(
        ValueError, match=re.escape("Got keep_period=5. The next valid value is 6.")
    ):
        SaveConfig(period=2, keep_period=5)
    with pytest.raises(ValueError, match="no effect with period=None.* Got keep_period=5"):
        SaveConfig(period=None, keep_period=5, checkpoint_steps=(5,))
