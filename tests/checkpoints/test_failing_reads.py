"""Reads that fail for a reason outside the checkpoint, which then is neither moved nor skipped."""

import errno
import os
import pathlib

import orbax.checkpoint as ocp
import pytest
from states import assert_same, restore, save, state_of

from idode_gin.checkpoints import meta, saving

REFUSALS = {
    "memory of a device": RuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4294967296 bytes."
    ),
    "memory": MemoryError(),
    "permission in words": ValueError('PERMISSION_DENIED: Error opening local file "/run/d/1"'),
    **{
        name: OSError(code, os.strerror(code))
        for name, code in (
            ("permission", errno.EACCES),
            ("file handles", errno.EMFILE),
            ("a stale mount", errno.ESTALE),
        )
    },
}


def check_kept(directory, monkeypatch):
    steps = saving.saved_steps(directory)
    with pytest.raises(OSError, match="no sign of damage") as error:
        restore(directory)
    assert "checkpoint_4" in str(error.value)
    with pytest.raises(OSError, match="no sign of damage"):
        saving.restore_params(directory, state_of(0).params)
    monkeypatch.undo()
    assert saving.saved_steps(directory) == steps
    assert_same(restore(directory)[0], state_of(4))


@pytest.mark.parametrize("error", REFUSALS.values(), ids=REFUSALS)
def test_arrays(tmp_path, monkeypatch, error):
    save(tmp_path, 2, 4)

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", refuse)
    check_kept(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["permission", "file handles", "a stale mount"])
def test_a_description(tmp_path, monkeypatch, name):
    save(tmp_path, 2, 4)
    read = pathlib.Path.read_text

    def refuse(path, *arguments, **named):
        if path.name == "metadata" and path.parts[-3] == "checkpoint_4":
            raise REFUSALS[name]
        return read(path, *arguments, **named)

    monkeypatch.setattr(pathlib.Path, "read_text", refuse)
    check_kept(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)),
        OSError(errno.EIO, os.strerror(errno.EIO)),
        ValueError("DATA_LOSS: Error decoding the manifest"),
    ],
    ids=repr,
)
def test_what_the_files_say_is_damage(error):
    assert not meta.is_no_damage(error)
