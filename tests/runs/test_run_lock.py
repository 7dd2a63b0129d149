"""Two runs in one directory: refused while the first is alive, and never after it ended."""

import errno
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from idode_gin.configs import outputs as config_outputs
from idode_gin.evaluation import earlier_results, pilot_run
from idode_gin.generation import outputs
from idode_gin.runs import partial_results, run_lock

HERE = pathlib.Path(__file__).parent
OTHER_RUN = """
import sys, time
from idode_gin.runs import run_lock
with run_lock.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_run(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_RUN, tmp_path],
        stdout=subprocess.PIPE,
        cwd=HERE.parent.parent,
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, other_run):
    refusal = rf"{tmp_path} is in use by process {other_run.pid} on .* another MODEL_DIR"
    with pytest.raises(ValueError, match=refusal), run_lock.held(tmp_path):
        pass
    assert (tmp_path / run_lock.NAME).exists()
    other_run.send_signal(signal.SIGKILL)
    other_run.wait()
    with run_lock.held(tmp_path):
        assert json.loads((tmp_path / run_lock.NAME).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_within_a_run_it_is_free(tmp_path):
    with run_lock.held(tmp_path):
        with run_lock.held(tmp_path):
            pass
        assert (tmp_path / run_lock.NAME).exists()
    assert list(tmp_path.iterdir()) == []


def test_other_processes_of_a_run_do_not_ask(tmp_path, other_run):
    with run_lock.held(tmp_path, is_first=False):
        owner = json.loads((tmp_path / run_lock.NAME).read_text())
        assert owner["pid"] == other_run.pid
    assert (tmp_path / run_lock.NAME).exists()


def test_without_locks_a_warning_is_logged(tmp_path, monkeypatch, caplog):
    def unknown(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with run_lock.held(tmp_path):
        assert "Operation not supported. Another run there is not noticed." in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_again(tmp_path, monkeypatch):
    """Its last owner removes the file between our opening and locking it."""
    flock, paths = fcntl.flock, [tmp_path / run_lock.NAME]

    def late(*arguments):
        if paths:
            paths.pop().unlink()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", late)
    with run_lock.held(tmp_path):
        assert json.loads((tmp_path / run_lock.NAME).read_text())["pid"] == os.getpid()


def test_a_file_that_was_cut_short_names_nobody(tmp_path):
    (tmp_path / run_lock.NAME).write_text('{"ho')
    with run_lock.held(tmp_path):
        assert json.loads((tmp_path / run_lock.NAME).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["open", "pwrite"])
def test_a_lock_that_cannot_be_written_says_what_to_do(tmp_path, monkeypatch, number, call):
    def refuse(*_):
        raise OSError(number, os.strerror(number), "run.lock")

    monkeypatch.setattr(os, call, refuse)
    message = rf"run\.lock cannot be written: {os.strerror(number)}\. .* choose another OUTPUT\."
    with pytest.raises(OSError, match=message) as error, run_lock.held(tmp_path, macro="OUTPUT"):
        pass
    assert "Errno" not in str(error.value)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_folder_that_is_moved_away_is_noticed_and_its_successor_stays(tmp_path, is_replaced):
    folder, lock = tmp_path / "run", tmp_path / "run" / run_lock.NAME
    with run_lock.held(folder):
        run_lock.check(folder)
        folder.rename(tmp_path / "away")
        if is_replaced:
            folder.mkdir()
            lock.write_text("of another run")
        with pytest.raises(OSError, match="run was deleted, moved or replaced while this run"):
            run_lock.check(folder)
    assert lock.exists() == is_replaced
    run_lock.check(folder)


def test_a_lock_that_is_removed_alone_matters_once_another_run_has_one(tmp_path):
    with run_lock.held(tmp_path):
        (tmp_path / run_lock.NAME).unlink()
        run_lock.check(tmp_path)
        (tmp_path / run_lock.NAME).write_text("of another run")
        with pytest.raises(OSError, match="deleted, moved or replaced"):
            run_lock.check(tmp_path)


def _partial(folder):
    kept = partial_results.PartialResults(folder / "partial_results", {}, num_images=1)
    kept.add("samples", np.arange(1), {"nfe": np.ones(1)})
    return kept


WRITERS = {
    "partial results": lambda folder: _partial(folder).write(),
    "their removal": lambda folder: _partial(folder).remove(),
    "a pilot": lambda folder: pilot_run.Kept(folder / "partial_results", {}).write("a", b"{}"),
    "a summary of an evaluation": lambda folder: earlier_results.replace(folder, {}),
    "samples": lambda folder: outputs.write(str(folder), {}, "a.npz", {}, "a.png", np.ones(1)),
    "pictures": lambda folder: outputs.write_pngs(str(folder), None),
    "a configuration": lambda folder: config_outputs._write(folder, "A", "", ""),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("inside", ["", "step_5"])
def test_a_program_whose_folder_was_replaced_writes_and_removes_nothing(tmp_path, write, inside):
    folder = tmp_path / "output"
    with run_lock.held(folder):
        folder.rename(tmp_path / "away")
        (folder / inside / "partial_results").mkdir(parents=True)
        others = {"run.lock", "summary.json", f"{inside}/summary.json"}
        for name in others:
            (folder / name).write_text("of another program")
        there = sorted(folder.rglob("*"))
        with pytest.raises(OSError, match="output was deleted, moved or replaced"):
            write(folder / inside)
    assert sorted(folder.rglob("*")) == there
    assert all((folder / name).read_text() == "of another program" for name in others)
