"""More signals: those that are one request, ways of batch systems, and a closed terminal."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from idode_gin.processes import preemption
from idode_gin.processes.preemption import StopRequest

BUSY = textwrap.dedent(
    """
    import time
    from idode_gin.processes.preemption import StopRequest
    with StopRequest():
        print("ready", flush=True)
        time.sleep(4)
    """
)


@pytest.mark.parametrize(
    ("second", "pause", "code"),
    [
        (signal.SIGTERM, 0.0, 0),
        (signal.SIGUSR1, 0.1, 0),
        (signal.SIGTERM, 1.5, 128 + signal.SIGTERM),
        (signal.SIGINT, 0.1, 128 + signal.SIGINT),
    ],
)
def test_signals_within_a_second_are_the_same_request(second, pause, code):
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == "\n"
        process.stderr.readline()
        time.sleep(pause)
        process.send_signal(second)
        assert process.wait(timeout=30) == code
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_outside_a_loop_a_second_signal_of_the_same_request_does_not_disturb_cleaning_up():
    with preemption.stoppable():
        with pytest.raises(preemption.StoppedOutsideLoop, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR2)


@pytest.mark.parametrize("number", preemption.MORE_SIGNALS)
def test_a_signal_that_is_ignored_or_handled_stays_so(number):
    before, heard = signal.getsignal(number), []
    try:
        signal.signal(number, signal.SIG_IGN)
        with StopRequest() as stop:
            signal.raise_signal(number)
            assert not stop.requested
        signal.signal(number, lambda *_: heard.append(number))
        with StopRequest() as stop:
            signal.raise_signal(number)
            assert (heard, stop.requested) == ([number], False)
    finally:
        signal.signal(number, before)


AT_A_TERMINAL = """
import os, pty, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
child, terminal = pty.fork()
if child == 0:
    os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
assert b"ready" in os.read(terminal, 64)
os.close(terminal)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
SAVING = """
import sys, time
from idode_gin.processes.preemption import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while not stop.requested:
        pass
    print("saving", flush=True)
    print("saving", file=sys.stderr, flush=True)
open(sys.argv[1], "w").write(stop.reason)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_reader_of_the_output_that_has_ended_ends_no_save(number, tmp_path):
    """As `2>&1 | tee log` does at Ctrl-C, which goes to both."""
    saved = tmp_path / "saved"
    process = subprocess.Popen(
        [sys.executable, "-c", SAVING, saved], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    process.send_signal(number)
    assert process.wait(timeout=60) == 0
    assert saved.read_text() == number.name


def test_a_closed_terminal_does_not_end_the_process_before_it_has_saved(tmp_path):
    saved = tmp_path / "saved"
    command = [sys.executable, "-c", AT_A_TERMINAL, SAVING, saved]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0
    assert saved.read_text() == "SIGHUP"
