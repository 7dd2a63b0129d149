"""Two runs in one directory: refused while the first is alive, and never after it ended."""

import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from idode_gin.runs import run_lock

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


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(run_lock, "WATCH_SECONDS", 0.4)
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.05)


def of_another_host(directory):
    path = directory / run_lock.NAME
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    return path


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
        pass


def test_another_hosts_run_is_alive_while_its_file_is_renewed(tmp_path, impatient):
    path, stopped = of_another_host(tmp_path), threading.Event()
    number = os.open(path, os.O_RDWR)
    beating = threading.Thread(target=run_lock._beat, args=(number, stopped))
    beating.start()
    try:
        with pytest.raises(ValueError, match="process 1 on elsewhere"), run_lock.held(tmp_path):
            pass
    finally:
        stopped.set()
        beating.join()
        os.close(number)
    with run_lock.held(tmp_path):  # and dead when it is not
        pass


def test_without_locks_the_heartbeat_has_to_do(tmp_path, impatient, monkeypatch):
    def unknown(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with run_lock.held(tmp_path):
        before = (tmp_path / run_lock.NAME).stat().st_mtime_ns
        end = time.monotonic() + 10
        while (tmp_path / run_lock.NAME).stat().st_mtime_ns == before:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_file_that_was_cut_short_names_nobody(tmp_path):
    (tmp_path / run_lock.NAME).write_text('{"ho')
    with run_lock.held(tmp_path):
        pass
