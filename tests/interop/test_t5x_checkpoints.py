"""Checkpoints of upstream t5x: round trips keep every bit, and what does not fit is refused."""

import errno
import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import states
from flax import serialization, traverse_util

from idode_gin.checkpoints import plain_trees
from idode_gin.interop import convert, t5x_checkpoints
from idode_gin.reports import fingerprints

STEP = 6


def upstream_tree(*, average=True, **optimizer):
    """Return what t5x's trainer saves: flax's state dict without empty nodes."""
    state = states.state_of(STEP, **optimizer)
    flat = traverse_util.flatten_dict(serialization.to_state_dict(state.opt_state))
    optimizer = traverse_util.unflatten_dict(flat)
    pair = {"0": optimizer, "1": {"count": np.int32(STEP), "ema": state.ema}}
    inner = {"step": np.int32(STEP), "param_states": pair if average else optimizer}
    return {"target": state.params, "state": inner}


def write(folder, tree):
    return plain_trees.write(folder, STEP, "state", tree)


def names_and_bits(tree):
    return [
        (name, np.asarray(leaf).tobytes()) for name, leaf in fingerprints.paths_and_leaves(tree)
    ]


@pytest.mark.parametrize("optimizer", [{}, {"accumulation_steps": 2}, {"clip_norm": 1.0}])
def test_ours_returns_from_t5x_unchanged(tmp_path, optimizer):
    states.save(tmp_path / "ours", STEP, **optimizer)
    path = convert.convert(tmp_path / "ours", tmp_path / "theirs", to="t5x")
    assert path == tmp_path / "theirs" / f"checkpoint_{STEP}"
    assert names_and_bits(plain_trees.read(path / "state")) == names_and_bits(
        upstream_tree(**optimizer)
    )
    convert.convert(tmp_path / "theirs", tmp_path / "again")
    found, _ = states.restore(tmp_path / "again", states.state_of(0, **optimizer))
    wanted = states.state_of(STEP, **optimizer)
    for part in ("params", "ema", "opt_state", "step"):
        states.assert_same(getattr(found, part), getattr(wanted, part))


def test_a_run_starts_from_a_checkpoint_of_t5x(tmp_path):
    write(tmp_path / "theirs", upstream_tree())
    assert convert.main([f"--source={tmp_path / 'theirs'}", f"--output={tmp_path / 'ours'}"]) == 0
    state, restored = states.restore(tmp_path / "run", path=str(tmp_path / "ours"))
    assert int(state.step) == STEP
    states.assert_same(state.ema, states.state_of(STEP).ema)
    assert restored.facts["converted_from"] == str(tmp_path / "theirs")


def test_without_an_average_it_starts_at_the_parameters(tmp_path):
    write(tmp_path, upstream_tree(average=False))
    state = t5x_checkpoints.load(tmp_path)
    wanted = states.state_of(STEP)
    states.assert_same(state.ema, wanted.params)
    assert names_and_bits(state.opt_state) == names_and_bits(wanted.opt_state)


def test_counters_of_a_resumed_run_become_integers_again(tmp_path):
    """t5x restores all numbers in one dtype, and saves the step as float32 from then on."""
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), upstream_tree())
    write(tmp_path, tree)
    state = t5x_checkpoints.load(tmp_path)
    wanted = states.state_of(STEP)
    assert state.step == wanted.step
    assert names_and_bits(state.opt_state) == names_and_bits(wanted.opt_state)


@pytest.mark.parametrize("to", ["idode_gin", "t5x"])
def test_a_full_disk_names_the_output(tmp_path, monkeypatch, capsys, to):
    states.save(tmp_path / "ours", STEP)
    source = tmp_path / "ours"
    if to == "idode_gin":
        source = write(tmp_path / "theirs", upstream_tree())

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    command = [f"--to={to}", f"--source={source}", f"--output={tmp_path / 'new'}"]
    with monkeypatch.context() as full:
        full.setattr(ocp.CheckpointManager, "save", refuse)
        assert convert.main(command) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'new'} must have room for the converted checkpoint, and cannot be "
        "written to (No space left on device). Free space there and run the same command again, "
        "or give another --output.\n"
    )
    assert convert.main(command) == 0


def test_average_alone_for_scoring(tmp_path):
    states.save(tmp_path / "ours", STEP)
    path = convert.convert(tmp_path / "ours", tmp_path / "theirs", to="t5x-ema")
    tree = plain_trees.read(path / "state")
    states.assert_same(jax.tree.map(np.asarray, states.state_of(STEP).ema), tree["target"])
    assert tree["state"] == {"step": STEP}


def test_kinds_of_checkpoints_are_told_apart(tmp_path, capsys):
    states.save(tmp_path / "ours", STEP)
    path = write(tmp_path / "theirs", upstream_tree())
    assert t5x_checkpoints.holds(path)
    assert t5x_checkpoints.holds(path.parent)
    assert not t5x_checkpoints.holds(tmp_path / "ours")
    assert not t5x_checkpoints.holds(tmp_path / "nothing")
    command = ["--to=t5x", f"--source={path}", f"--output={tmp_path / 'new'}"]
    assert convert.main(command) == 2
    assert "checkpoint_6 is a checkpoint of t5x" in capsys.readouterr().err
    shutil.rmtree(path / "state")
    assert convert.main([f"--source={path}", f"--output={tmp_path / 'new'}"]) == 2


def write_without_orbax(folder):
    """Write what t5x leaves with use_orbax=False: a file of msgpack, and a folder for each leaf."""
    checkpoint = folder / f"checkpoint_{STEP}"
    for name in ("target.hidden.bias", "state.param_states.0.0.mu.hidden.bias"):
        (checkpoint / name).mkdir(parents=True)
        (checkpoint / name / ".zarray").write_text("{}")
    content = {"version": 3, "optimizer": {"target": {}, "state": {"step": np.int32(STEP)}}}
    (checkpoint / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    return checkpoint


@pytest.mark.parametrize("to", convert.FORMATS)
@pytest.mark.parametrize("of_run", [False, True])
def test_what_t5x_saved_without_orbax_must_be_saved_again(tmp_path, capsys, to, of_run):
    path = write_without_orbax(tmp_path / "theirs")
    source = path.parent if of_run else path
    command = [f"--to={to}", f"--source={source}", f"--output={tmp_path / 'new'}"]
    assert convert.main(command) == 2
    assert capsys.readouterr().err == (
        f"error: {path} was written by t5x with use_orbax=False, which is neither read nor changed "
        "here. Save it once from t5x with use_orbax=True, then convert that checkpoint_<step> "
        "(python -m idode_gin.interop.convert).\n"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("start", [False, True])
def test_a_run_takes_none_without_orbax_for_a_damaged_one_of_ours(tmp_path, start):
    path = write_without_orbax(tmp_path / "theirs")
    before = sorted(tmp_path.rglob("*"))
    of_run = {"path": str(path.parent)} if start else {}
    with pytest.raises(ValueError, match="by t5x with use_orbax=False") as error:
        states.restore(tmp_path / ("run" if start else "theirs"), **of_run)
    assert error.type is ValueError
    assert set(before) <= set(tmp_path.rglob("*"))


def test_a_file_named_checkpoint_is_none_of_t5x(tmp_path):
    (tmp_path / f"checkpoint_{STEP}").mkdir()
    (tmp_path / f"checkpoint_{STEP}" / "checkpoint").write_bytes(b"of flax")
    assert not t5x_checkpoints.holds(tmp_path)
