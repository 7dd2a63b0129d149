"""Saves that fail: full disks, and processes that do not finish."""

import errno
import os

import jax
import orbax.checkpoint as ocp
import pytest
from states import FACTS, assert_same, config, restore, save, state_of

from idode_gin import checks
from idode_gin.checkpoints import saving


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
        r"The last good one is checkpoint_2\. Free space there .* another MODEL_DIR, with "
        rf"INITIAL_CHECKPOINT_PATH = '{tmp_path}/checkpoint_2'"
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
