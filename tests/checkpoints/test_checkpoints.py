"""Saving and finding again: order, damage, other architectures, half-written directories."""

import dataclasses
import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from states import FACTS, abstract_of, assert_same, config, restore, save, state_of

from idode_gin import checks
from idode_gin.checkpoints import files, orbax_logging, reading, saving
from idode_gin.checkpoints import meta as checkpoint_meta


def array_files(checkpoint, part):
    """The files that hold the arrays of one part, largest first."""
    files = [each for each in (checkpoint / part).rglob("*") if each.parent.name == "d"]
    return sorted(files, key=lambda each: each.stat().st_size, reverse=True)


def truncate(checkpoint, part="params"):
    for file in array_files(checkpoint, part):
        file.write_bytes(file.read_bytes()[:10])


def flip_bits(checkpoint, part="params"):
    for file in array_files(checkpoint, part):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


def exchange(checkpoint, part="params"):
    """Files that are well formed, but another checkpoint's."""
    shutil.rmtree(checkpoint / part)
    shutil.copytree(checkpoint.with_name("checkpoint_2") / part, checkpoint / part)


def test_everything_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, 3, accumulation_steps=2, clip_norm=1.0)
    like = state_of(0, accumulation_steps=2, clip_norm=1.0)
    state, restored = restore(tmp_path, like)
    assert_same(state, state_of(3, accumulation_steps=2, clip_norm=1.0))
    assert restored.path == tmp_path / "checkpoint_3"
    assert restored.facts == FACTS


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    """The files are written while training goes on, and overwrites the buffers."""
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    params, ema = ({name: jnp.zeros((256, 1024)) for name in "abcdefgh"} for _ in range(2))
    state = dataclasses.replace(state_of(0), params=params, ema=ema)
    like = abstract_of(state)
    with saving.Checkpoints(tmp_path, config(), FACTS) as saved:
        for _ in range(4):
            state = step(state)
            saved.save(state)
            for _ in range(3):
                state = step(state)
        assert saved.last_good() == tmp_path / "checkpoint_13"  # waits until it is there
        found = saved.restore(like, lambda: state)[0]
    assert int(found.step) == 13
    np.testing.assert_array_equal(found.params["a"], 13.0)
    np.testing.assert_array_equal(found.ema["h"], 13.0)


def test_the_newest_is_taken_and_the_oldest_go(tmp_path):
    save(tmp_path, 2, 4, 10, keep=2)
    assert saving.saved_steps(tmp_path) == [4, 10]
    assert int(restore(tmp_path)[0].step) == 10


def test_saving_a_step_twice_changes_nothing(tmp_path):
    save(tmp_path, 2)
    save(tmp_path, 2, value=5.0)
    assert_same(restore(tmp_path)[0], state_of(2))


def test_order_own_then_given_then_scratch(tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    state, restored = restore(own, path=None)
    assert restored is None
    assert int(state.step) == 0
    save(other, 4, 6)
    assert int(restore(own, path=str(other))[0].step) == 6
    assert int(restore(own, path=str(other / "checkpoint_4"))[0].step) == 4
    save(own, 2)
    assert int(restore(own, path=str(other))[0].step) == 2


def test_parameters_for_evaluation(tmp_path):
    save(tmp_path, 2, 4)
    shapes = jax.eval_shape(lambda: state_of(0).params)
    averaged, step, *_ = saving.restore_params(tmp_path, shapes)
    assert step == 4
    assert_same(averaged, state_of(4).ema)
    raw, step, path, facts = saving.restore_params(tmp_path / "checkpoint_2", shapes, ema=False)
    assert step == 2
    assert_same(raw, state_of(2).params)
    assert path == tmp_path / "checkpoint_2"
    assert facts == FACTS


def test_a_relative_path_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("run", 2)
    assert int(restore("run")[0].step) == 2


def test_no_checkpoint_where_one_was_promised(tmp_path):
    with pytest.raises(ValueError, match="no such directory"):
        restore(tmp_path / "own", path=str(tmp_path / "nowhere"))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="holds nothing"):
        saving.restore_params(empty, {})
    (empty / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match=r"holds metrics.jsonl.*checkpoint_<step>"):
        saving.restore_params(empty, {})
    save(tmp_path / "run", 2, 4)
    with pytest.raises(ValueError, match=r"Saved steps beside it: \[2, 4\]"):
        saving.restore_params(tmp_path / "run" / "checkpoint_3", {})


def test_mode_says_what_the_path_must_be(tmp_path):
    save(tmp_path, 2)
    specific = tmp_path / "checkpoint_2"
    assert saving.find(tmp_path, "latest") == saving.find(specific, "specific")
    with pytest.raises(ValueError, match="requires a checkpoint directory"):
        saving.find(tmp_path, "specific")
    with pytest.raises(ValueError, match="requires a run directory"):
        saving.find(specific, "latest")
    with pytest.raises(ValueError, match="Did you mean 'latest'"):
        saving.RestoreCheckpointConfig(mode="latests")


@pytest.mark.parametrize("damage", [truncate, flip_bits, exchange])
@pytest.mark.parametrize("part", ["params", "training"])
def test_a_damaged_newest_is_passed_over_in_training(tmp_path, caplog, damage, part):
    save(tmp_path, 2, 4)
    damage(tmp_path / "checkpoint_4", part)
    state, restored = restore(tmp_path)
    assert_same(state, state_of(2))
    assert restored.path.name == "checkpoint_2"
    assert "checkpoint_4 is damaged" in caplog.text
    assert saving.saved_steps(tmp_path) == [2]
    assert (tmp_path / "damaged_checkpoint_4").is_dir()
    save(tmp_path, 4)  # nothing is in the way of saving that step again
    assert_same(restore(tmp_path)[0], state_of(4))


@pytest.mark.parametrize("is_own", [True, False])
def test_a_slow_process_agrees_on_a_damaged_description(tmp_path, monkeypatch, is_own):
    """It looks when the first process has renamed the checkpoint, or training has saved another."""
    first, second = tmp_path / "first", tmp_path / "second"
    save(first, 2, 4)
    (first / "checkpoint_4" / "meta" / "metadata").write_text("{}")
    shutil.copytree(first, second)
    asked = []

    def from_first(make):
        asked.append(make() or b"")
        return asked[-1]

    def is_any(flag):
        asked.append(flag)
        return flag

    def replay(_):
        answer = next(answers)
        return answer.replace(b"/first", b"/second") if isinstance(answer, bytes) else answer

    def found(folder):
        if is_own:
            return int(restore(folder)[0].step)
        return saving.restore_params(folder, state_of(0).params, ema=False).step

    monkeypatch.setattr(reading.exchange, "from_first", from_first)
    monkeypatch.setattr(reading.exchange, "is_any", is_any)
    assert found(first) == 2
    answers = iter(list(asked))
    if is_own:
        (second / "checkpoint_4").rename(second / "damaged_checkpoint_4")
    else:
        save(second, 6)
    monkeypatch.setattr(reading.exchange, "from_first", replay)
    monkeypatch.setattr(reading.exchange, "is_any", replay)
    assert found(second) == 2
    assert next(answers, None) is None  # it has taken part in every exchange


def test_what_one_process_alone_cannot_read_is_left(tmp_path, monkeypatch):
    save(tmp_path, 2, 4)
    monkeypatch.setattr(reading.exchange, "is_any", lambda _: True)
    with pytest.raises(OSError, match="Only some processes can read .*checkpoint_4"):
        restore(tmp_path)
    assert saving.saved_steps(tmp_path) == [2, 4]


def test_files_that_vanished_are_damage_too(tmp_path, caplog):
    save(tmp_path, 2, 4, 6, 8)
    (tmp_path / "checkpoint_8" / "meta" / "metadata").unlink()
    shutil.rmtree(tmp_path / "checkpoint_6" / "ema")
    for file in array_files(tmp_path / "checkpoint_4", "training"):
        file.unlink()
    assert int(restore(tmp_path)[0].step) == 2
    assert caplog.text.count("damaged") >= 3


def test_when_all_are_damaged_training_does_not_start_over_by_itself(tmp_path):
    save(tmp_path, 2, 4)
    for step in (2, 4):
        truncate(tmp_path / f"checkpoint_{step}")
    for _ in range(2):  # nor the next time: a disk that fails may be whole again
        with pytest.raises(ValueError, match=r"Every .* is damaged \(steps \[2, 4\]\). None was"):
            restore(tmp_path)


def test_a_damaged_newest_of_another_run_is_passed_over_loudly(tmp_path, caplog):
    other = tmp_path / "other"
    save(other, 2, 4)
    truncate(other / "checkpoint_4", "ema")
    shapes = jax.eval_shape(lambda: state_of(0).params)
    averaged, step, path, _ = saving.restore_params(other, shapes)
    assert_same(averaged, state_of(2).ema)
    assert (step, path) == (2, other / "checkpoint_2")
    loud = rf"checkpoint_4 is damaged: .* TAKING THE ONE BEFORE IT: {other / 'checkpoint_2'}"
    assert len(re.findall(loud, caplog.text)) == 1
    state, restored = restore(tmp_path / "own", path=str(other))
    assert_same(state, state_of(2))
    assert restored.path == other / "checkpoint_2"
    assert len(re.findall(loud, caplog.text)) == 2
    assert (other / "checkpoint_4").is_dir()  # it is not this run's to move
    truncate(other / "checkpoint_2", "ema")
    with pytest.raises(ValueError, match=r"checkpoint_2 is damaged.* So are the 1 after it"):
        saving.restore_params(other, shapes)


def test_a_damaged_one_that_was_asked_for_is_an_error(tmp_path):
    save(tmp_path / "other", 2, 4)
    newest = tmp_path / "other" / "checkpoint_4"
    truncate(newest, "ema")
    shapes = jax.eval_shape(lambda: state_of(0).params)
    with pytest.raises(ValueError, match="checkpoint_4 is damaged"):
        saving.restore_params(newest, shapes)
    with pytest.raises(ValueError, match="checkpoint_4 is damaged"):
        restore(tmp_path / "own", path=str(newest))
    assert newest.is_dir()


def test_a_half_written_directory_is_not_a_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 2)
    half = tmp_path / "checkpoint_4.orbax-checkpoint-tmp-123"
    shutil.copytree(tmp_path / "checkpoint_2", half)
    shutil.rmtree(half / "training")
    assert saving.saved_steps(tmp_path) == [2]
    assert int(restore(tmp_path)[0].step) == 2
    deleted = tmp_path / "deleted_checkpoint_1"
    deleted.mkdir()
    seen = []
    left = lambda *_: seen.append([each for each in (half, deleted) if each.exists()])  # noqa: E731
    monkeypatch.setattr(files, "check_space", left)
    save(tmp_path, 4)
    assert saving.saved_steps(tmp_path) == [2, 4]
    assert seen == [[]]  # gone before the room for another one is checked


def test_another_architecture_is_named_leaf_by_leaf(tmp_path):
    save(tmp_path, 2)
    with pytest.raises(ValueError, match="does not fit") as error:
        restore(tmp_path, state_of(0, width=16))
    text = str(error.value)
    assert "params/hidden/kernel: shape [2, 8] in the checkpoint, [2, 16] here" in text
    assert "and 7 more" in text
    assert "MODEL_DIR" in text
    shapes = jax.eval_shape(lambda: state_of(0).params)
    more = {**shapes, "extra": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(ValueError, match=r"ema/extra: missing from the checkpoint"):
        saving.restore_params(tmp_path, more)
    less = {"hidden": shapes["hidden"]}
    with pytest.raises(ValueError, match=r"ema/out/bias: in the checkpoint, unknown to this run"):
        saving.restore_params(tmp_path, less)
    assert saving.saved_steps(tmp_path) == [2]


def with_momentum(state):
    return dataclasses.replace(state, opt_state=optax.sgd(0.1, momentum=0.9).init(state.params))


def test_another_optimizer_has_its_own_way_out(tmp_path):
    save(tmp_path, 2)
    with pytest.raises(ValueError, match="optimizer = 'reset'") as error:
        restore(tmp_path, with_momentum(state_of(0)))
    assert "training/opt_state" in str(error.value)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_may_begin_and_cease_to_clip_its_gradient(tmp_path, steps):
    for before, now in ({}, {"clip_norm": 1.0}), ({"clip_norm": 1.0}, {}):
        folder = tmp_path / str(len(before))
        save(folder, 2, accumulation_steps=steps, **before)
        state, _ = restore(folder, state_of(0, accumulation_steps=steps, **now))
        assert_same(state, state_of(2, accumulation_steps=steps))


def test_double_precision_is_read_in_double_precision_only(tmp_path, float64):
    save(tmp_path, 2)
    assert_same(restore(tmp_path)[0], state_of(2))
    jax.config.update("jax_enable_x64", False)
    with pytest.raises(ValueError, match="JAX_ENABLE_X64"):
        restore(tmp_path, state_of(0))


def test_single_precision_is_widened(tmp_path, float64):
    jax.config.update("jax_enable_x64", False)
    save(tmp_path, 2)
    expected = state_of(2).params
    jax.config.update("jax_enable_x64", True)
    shapes = jax.eval_shape(lambda: state_of(0).params)
    assert jax.tree.leaves(shapes)[0].dtype == jnp.float64
    found = saving.restore_params(tmp_path, shapes, ema=False).params
    assert jax.tree.leaves(found)[0].dtype == jnp.float64
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("where", ["params", "ema", "window"])
def test_a_state_that_is_not_finite_cannot_be_saved(tmp_path, where):
    state = state_of(2)
    spoilt = jax.tree.map(
        lambda leaf: leaf.at[..., :1].set(jnp.nan) if leaf.ndim else leaf * jnp.nan,
        getattr(state, where),
    )
    state = dataclasses.replace(state, **{where: spoilt})
    with saving.Checkpoints(tmp_path, config(), FACTS) as saved:
        with pytest.raises(checks.NonFiniteError, match="after step 2"):
            saved.save(state)
        assert saved.last_good() is None
    assert saving.saved_steps(tmp_path) == []


def test_plan_says_what_restore_would_do(tmp_path):
    like = abstract_of(state_of(0))

    def plan(directory, abstract=like, **restore_config):
        return saving.Checkpoints(directory, config(**restore_config), {}).plan(abstract)

    own, other = tmp_path / "own", tmp_path / "other"
    assert plan(own) == "from scratch"
    save(other, 4)
    assert plan(other) == f"from {other / 'checkpoint_4'}"
    found = plan(own, path=str(other))
    assert found.startswith(f"from {other / 'checkpoint_4'}:\n")
    assert "optimizer  10 leaves restored, 0 padded, 0 reset" in found
    another = abstract_of(with_momentum(state_of(0)))
    assert " 4 reset" in plan(own, another, path=str(other), optimizer="reset")
    with pytest.raises(ValueError, match="does not fit"):
        plan(own, abstract_of(state_of(0, width=16)), path=str(other))
    with pytest.raises(ValueError, match="no such directory"):
        plan(own, path=str(tmp_path / "nowhere"))
    assert not own.exists()


def test_facts_are_kept(tmp_path):
    save(tmp_path, 2)
    _, restored = restore(tmp_path)
    assert restored.facts == FACTS


def test_a_newer_format_is_refused(tmp_path):
    save(tmp_path, 2)
    path = tmp_path / "checkpoint_2" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(checkpoint_meta.sealed(meta | {"format": 99})))
    with pytest.raises(ValueError, match="format 99") as error:
        restore(tmp_path)
    assert not isinstance(error.value, checkpoint_meta.DamagedError)


def test_numbers_out_of_range():
    for changes in ({"period": 0}, {"keep": 0}, {"keep_period": 0}, {"keep_best": 0}):
        with pytest.raises(ValueError, match=f"SaveCheckpointConfig.{next(iter(changes))}"):
            saving.SaveCheckpointConfig(**changes)


def test_period():
    with_period = saving.Checkpoints("unused", config(), {})
    assert [step for step in range(1, 7) if with_period.is_due(step)] == [2, 4, 6]
    never = saving.CheckpointConfig(save=saving.SaveCheckpointConfig(period=None))
    assert not any(saving.Checkpoints("unused", never, {}).is_due(step) for step in range(9))
    assert not os.path.exists("unused")


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoint_3").touch()
    with pytest.raises(ValueError, match="checkpoint_3: it is a file"):
        saving.find(tmp_path / "checkpoint_3")


def test_damage_names_the_one_before_it(tmp_path):
    save(tmp_path, 2, 4, 6)
    truncate(tmp_path / "checkpoint_6", "ema")
    (tmp_path / "checkpoint_4" / "meta" / "metadata").write_text("{")
    shapes = jax.eval_shape(lambda: state_of(0).params)
    way_out = re.escape(f"--gin.CHECKPOINT_PATH=\"'{tmp_path / 'checkpoint_2'}'\"")
    with pytest.raises(ValueError, match=way_out) as error:
        saving.restore_params(tmp_path / "checkpoint_6", shapes)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600
    truncate(tmp_path / "checkpoint_2", "ema")
    with pytest.raises(ValueError, match="checkpoint_2 is damaged") as error:
        saving.restore_params(tmp_path / "checkpoint_2", shapes)
    assert "CHECKPOINT_PATH" not in str(error.value)


def test_reads_that_fail_after_the_first_one_are_not_printed(caplog, monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)

    def late(message):
        """What a callback of C code does when it cannot be raised anywhere."""
        error = RuntimeError(message)
        sys.unraisablehook(types.SimpleNamespace(exc_value=error, object=None))

    asyncio_log = logging.getLogger("asyncio")
    with pytest.raises(ValueError, match="first"), orbax_logging.silent_stragglers():
        raise ValueError("first")
    late("Event loop is closed")
    asyncio_log.error("Future exception was never retrieved\nfuture: a page of it")
    assert printed == []
    assert caplog.text == ""
    late("something else")
    asyncio_log.error("something else")
    assert len(printed) == 1
    assert "something else" in caplog.text


def test_restored_on_another_mesh_and_in_another_dtype(tmp_path):
    support = pathlib.Path(__file__).parents[1] / "support"
    result = subprocess.run(
        [sys.executable, support / "restore_on_meshes.py", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(support.parents[1])},
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert all(each["same"] for each in found.values())
    for name, devices in (("1", 1), ("4", 4), ("2x2", 4), ("1x4", 4)):
        assert found[f"{name} float32"]["bytes"] == [256 // devices] * devices
        assert found[f"{name} bfloat16"]["bytes"] == [128 // devices] * devices
