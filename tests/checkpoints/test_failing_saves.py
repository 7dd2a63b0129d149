"""Saves that fail: full disks, and processes that do not finish."""

import errno
import os

import jax
import orbax.checkpoint as ocp
import pytest
from states import FACTS, assert_same, config, restore, save, state_of

from idode_gin import checks
from idode_gin.checkpoints import plain_trees, saving, waiting


def fill_disk(monkeypatch, *, at_once):
    """Makes orbax fail while it writes, in its thread or in ours; a way back."""
    original = ocp.CheckpointManager.save if at_once else ocp.StandardCheckpointHandler.finalize

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner = ocp.CheckpointManager if at_once else ocp.StandardCheckpointHandler
    name = "save" if at_once else "finalize"
    monkeypatch.setattr(owner, name, refuse)
    return lambda: monkeypatch.setattr(owner, name, original)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("noticed", ["leaving", "waiting", "saving again"])
def test_a_full_disk_is_one_error_with_a_way_out(tmp_path, monkeypatch, caplog, at_once, noticed):
    save(tmp_path, 2)
    message = (
        rf"checkpoint of step 4 could not be saved in {tmp_path} \(No space left on device\)\. "
        r"The last good one is checkpoint_2\. Free space there .* again, or "
        rf"copy {tmp_path}/checkpoint_2 into another MODEL_DIR\."
    )
    empty_disk = fill_disk(monkeypatch, at_once=at_once)

    def run():
        with saving.Checkpoints(tmp_path, config(), FACTS) as saved:
            saved.save(state_of(4))
            if noticed == "waiting":
                saved.last_good()
            if noticed == "saving again":
                saved.save(state_of(6))

    with pytest.raises(OSError, match=message):
        run()
    assert caplog.text.count("Traceback") == 0
    assert saving.saved_steps(tmp_path) == [2]
    assert_same(restore(tmp_path)[0], state_of(2))
    empty_disk()
    save(tmp_path, 4)
    assert_same(restore(tmp_path)[0], state_of(4))


class Unfinished:
    """A save that another process never finishes."""

    def wait_until_finished(self):
        raise AssertionError("waited")


@pytest.mark.parametrize(
    ("count", "error", "waits"),
    [
        (2, ValueError, False),
        (2, checks.Preempted, True),
        (2, checks.NonFiniteError, True),
        (1, ValueError, True),
    ],
)
def test_one_of_several_that_fails_alone_does_not_wait_for_a_save_of_all(
    tmp_path, monkeypatch, count, error, waits
):
    saved = saving.Checkpoints(tmp_path, config(), FACTS)
    monkeypatch.setattr(saved, "_lazy_manager", Unfinished())
    monkeypatch.setattr(jax, "process_count", lambda: count)
    with pytest.raises(OSError if waits else error), saved:
        raise error


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_directory_that_was_deleted_is_not_a_full_disk(tmp_path, monkeypatch, is_replaced):
    folder = tmp_path / "run"

    def run():
        with saving.Checkpoints(folder, config(), FACTS) as saved:
            saved.save(state_of(2))
            saved.last_good()
            folder.rename(tmp_path / "away")
            if is_replaced:
                folder.mkdir()
            fill_disk(monkeypatch, at_once=True)
            saved.save(state_of(4))

    with pytest.raises(OSError, match="run was deleted or replaced during the run") as error:
        run()
    assert "Free space" not in str(error.value)


@pytest.mark.parametrize("name", ["lr[1e-4]", "sweep[0]/run", "a\\b", "[]a]", "a?", "s**t"])
def test_a_path_that_orbax_takes_for_a_pattern_is_refused(tmp_path, name):
    """It would report success, and write checkpoints without an index, which nobody can read."""
    folder = tmp_path / name
    with pytest.raises(ValueError, match="orbax takes for a pattern, got .* a symbolic link"):
        saving.Checkpoints(folder, config(), FACTS)
    with pytest.raises(ValueError, match="orbax takes for a pattern"):
        plain_trees.write(folder, 3, "state", {})
    assert list(tmp_path.iterdir()) == []
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    save(tmp_path / "link", 2)
    assert_same(restore(tmp_path / "link")[0], state_of(2))
    others = tmp_path / "lr=1e-4, {a: 'b'} # 5% é"
    save(others, 2)
    assert_same(restore(others)[0], state_of(2))


@pytest.mark.parametrize("keep", [1, None])
def test_a_checkpoint_without_its_index_is_not_taken_for_saved(tmp_path, monkeypatch, keep):
    save(tmp_path, 2)

    def merge_nothing(_, wait):
        wait()
        (tmp_path / "checkpoint_4" / "ema" / "manifest.ocdbt").unlink(missing_ok=True)

    monkeypatch.setattr(waiting, "while_answering", merge_nothing)
    message = "step 4 could not .*has not merged its arrays.* The last good one is checkpoint_2"
    with (
        pytest.raises(OSError, match=message),
        saving.Checkpoints(tmp_path, config(keep=keep), FACTS) as saved,
    ):
        saved.save(state_of(4))
    assert saving.saved_steps(tmp_path) == [2, 4]


def test_a_run_that_is_named_like_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must not be named like a checkpoint in one, got .*_7:"):
        saving.Checkpoints(tmp_path / "checkpoint_7", config(), FACTS)
    saving.Checkpoints(tmp_path / "checkpoint_7" / "run", config(), FACTS)
