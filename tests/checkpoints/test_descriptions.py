"""Descriptions of checkpoints: names, damage of every kind, and those without a checksum."""

import copy
import json
import random
import shutil

import jax
import pytest
from states import FACTS, abstract_of, assert_same, config, restore, save, state_of

from idode_gin.checkpoints import files, saving, steps_left
from idode_gin.checkpoints import meta as checkpoint_meta
from idode_gin.checkpoints.meta import DamagedError


def plan(directory, **restore_config):
    return saving.Checkpoints(directory, config(**restore_config), FACTS).plan(
        abstract_of(state_of(0))
    )


def path_of(checkpoint):
    return checkpoint / "meta" / "metadata"


def edit(checkpoint, change, *, is_sealed=False):
    """Change a description as `change` does; without a checksum, or with that of the result."""
    meta = json.loads(path_of(checkpoint).read_text())
    del meta["sha256"]
    change(meta)
    path_of(checkpoint).write_text(json.dumps(checkpoint_meta.sealed(meta) if is_sealed else meta))


def test_a_description_without_a_checksum_of_its_own_is_read(tmp_path):
    save(tmp_path, 2)
    edit(tmp_path / "checkpoint_2", lambda meta: None)
    state, restored = restore(tmp_path)
    assert_same(state, state_of(2))
    assert restored.facts == FACTS


def test_no_edit_of_one_byte_raises(tmp_path):
    save(tmp_path, 2, 4)
    checkpoint = tmp_path / "checkpoint_4"
    content, generator = path_of(checkpoint).read_bytes(), random.Random(5)
    whole = checkpoint_meta.read_meta(checkpoint)
    for _ in range(400):
        place, edited = generator.randrange(len(content)), bytearray(content)
        edited[place] = generator.randrange(256)
        path_of(checkpoint).write_bytes(edited)
        found = files.described(files.newest_first(tmp_path))
        assert found is not None
        assert found[0].name == "checkpoint_2" or found[1] == whole


@pytest.mark.parametrize("word", [b"facts", b"checksums", b"sha256", b"trees", b"params", b"step"])
def test_a_bit_in_a_word_of_it_is_damage_for_every_reader(tmp_path, word, caplog):
    save(tmp_path, 2, 4)
    path = path_of(tmp_path / "checkpoint_4")
    place = path.read_bytes().index(b'"' + word) + 2
    edited = bytearray(path.read_bytes())
    edited[place] ^= 1
    path.write_bytes(edited)
    shapes = jax.eval_shape(lambda: state_of(0).params)
    assert saving.restore_params(tmp_path, shapes).step == 2
    assert steps_left.instead(tmp_path, 3) is None
    assert plan(tmp_path) == f"from {tmp_path / 'checkpoint_2'}; damaged: checkpoint_4"
    assert int(restore(tmp_path)[0].step) == 2
    assert (tmp_path / "damaged_checkpoint_4").is_dir()
    assert "checkpoint_4 is not a complete checkpoint" in caplog.text


def shorten(meta):
    meta["checksums"]["params"].pop()


CHANGES = {
    "a shorter list of checksums": shorten,
    "no facts": lambda meta: meta.pop("facts"),
    "facts that are a list": lambda meta: meta.update(facts=[]),
    "a step that is a word": lambda meta: meta.update(step="four"),
    "a step below zero": lambda meta: meta.update(step=-4),
    "a step that is true": lambda meta: meta.update(step=True),
    "another step": lambda meta: meta.update(step=5),
    "a tree that is a list": lambda meta: meta["trees"].update(params=[]),
    "an unknown dtype": lambda meta: meta["trees"]["params"].update({"out/bias": ["float33", 3]}),
    "a leaf without a dtype": lambda meta: meta["trees"]["params"].update({"out/bias": []}),
    "a leaf that is a word": lambda meta: meta["trees"]["params"].update({"out/bias": "f"}),
    "a size that is a fraction": lambda meta: meta["trees"]["params"].update(
        {"out/bias": ["float32", 2.5]}
    ),
    "no checksums of a part": lambda meta: meta["checksums"].pop("training"),
    "checksums that are words": lambda meta: meta["checksums"].update(
        params=["x"] * len(meta["checksums"]["params"])
    ),
    "a format that is a word": lambda meta: meta.update(format="one"),
    "one more entry": lambda meta: meta.update(faces={}),
}


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_description_of_another_form_is_damage(tmp_path, change, is_sealed):
    if change == "one more entry" and is_sealed:
        pytest.skip("what a later version may write")
    save(tmp_path, 2, 4)
    edit(tmp_path / "checkpoint_4", CHANGES[change], is_sealed=is_sealed)
    assert int(restore(tmp_path)[0].step) == 2
    assert (tmp_path / "damaged_checkpoint_4").is_dir()


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'"meta"', b"{}", b"\xff{}", b"1" * 5000])
def test_a_description_of_other_content_is_damage(tmp_path, content):
    save(tmp_path, 2)
    path_of(tmp_path / "checkpoint_2").write_bytes(content)
    with pytest.raises(DamagedError, match="not a complete checkpoint"):
        checkpoint_meta.read_meta(tmp_path / "checkpoint_2")


def test_describing_is_a_function_of_its_arguments():
    parts = {"params": {"a": state_of(0).step}}
    made = checkpoint_meta.describe(parts, {"params": [1]}, step=1, facts={"a": (1, 2), "b": 0.1})
    again = copy.deepcopy(made)
    assert checkpoint_meta.sealed(json.loads(json.dumps(made)))["sha256"] == again["sha256"]


@pytest.mark.parametrize("name", ["checkpoint_007", "checkpoint_04", "checkpoint_+9"])
def test_a_name_that_is_not_a_step_is_ignored_with_a_warning(tmp_path, name, caplog):
    save(tmp_path, 2, 4)
    shutil.copytree(tmp_path / "checkpoint_2", tmp_path / name)
    assert saving.saved_steps(tmp_path) == [2, 4]
    assert plan(tmp_path) == f"from {tmp_path / 'checkpoint_4'}"
    assert int(restore(tmp_path)[0].step) == 4
    assert f"{name} is ignored" in caplog.text
    save(tmp_path, 7, keep=1)
    assert int(restore(tmp_path)[0].step) == 7
    assert (tmp_path / name).is_dir()
    caplog.clear()
    shapes = jax.eval_shape(lambda: state_of(0).params)
    assert saving.restore_params(tmp_path, shapes).step == 7
    assert f"{name} is ignored" in caplog.text


@pytest.mark.parametrize("name", ["checkpoint_002", "best"])
def test_a_checkpoint_of_another_name_is_refused_with_the_right_one(tmp_path, name):
    save(tmp_path, 2)
    shutil.copytree(tmp_path / "checkpoint_2", tmp_path / name)
    with pytest.raises(ValueError, match=r"must be named .* Rename it to checkpoint_2\."):
        saving.find(tmp_path / name)


def test_the_checkpoint_of_another_step_is_damage(tmp_path, caplog):
    save(tmp_path, 2)
    shutil.copytree(tmp_path / "checkpoint_2", tmp_path / "checkpoint_9")
    assert steps_left.instead(tmp_path, 9) is None
    assert int(restore(tmp_path)[0].step) == 2
    assert "named after its step, and it holds step 2" in caplog.text
    save(tmp_path, 9)
    assert int(restore(tmp_path)[0].step) == 9


@pytest.mark.parametrize("kind", ["empty", "file", "no part"])
def test_a_dry_run_takes_the_checkpoint_that_the_run_takes(tmp_path, kind):
    own, other = tmp_path / "own", tmp_path / "other"
    for directory in (own, other):
        save(directory, 2, 4)
        newest = directory / "checkpoint_6"
        if kind == "empty":
            newest.mkdir()
        elif kind == "file":
            newest.touch()
        else:
            shutil.copytree(directory / "checkpoint_4", newest)
            edit(newest, lambda meta: meta.update(step=6), is_sealed=True)
            shutil.rmtree(newest / "training")
        (directory / "damaged_checkpoint_6").touch()  # of an earlier time
    assert plan(own) == f"from {own / 'checkpoint_4'}; damaged: checkpoint_6"
    new = tmp_path / "new"
    assert plan(new, path=str(other)).startswith(f"from {other / 'checkpoint_4'}:\n")
    assert restore(new, path=str(other))[1].path == other / "checkpoint_4"
    assert restore(own)[1].path == own / "checkpoint_4"
    warm = saving.RestoreCheckpointConfig(path=str(other))
    steps_left.check(new, warm, 5)
    with pytest.raises(ValueError, match="must leave something to train"):
        steps_left.check(new, warm, 4)


def test_a_dry_run_is_refused_where_the_run_is(tmp_path):
    save(tmp_path, 2, 4)
    for step in (2, 4):
        shutil.rmtree(tmp_path / f"checkpoint_{step}" / "ema")
    for refused in (plan, restore):
        with pytest.raises(ValueError, match=r"\(steps \[2, 4\]\)\. None was changed"):
            refused(tmp_path)
    assert saving.saved_steps(tmp_path) == [2, 4]
