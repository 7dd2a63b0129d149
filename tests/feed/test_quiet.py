"""Messages of TensorFlow's import are dropped, and nothing else is."""

import faulthandler
import os
import signal
import subprocess
import sys

import pytest

from idode_gin.feed import quiet

GREETING = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n"
    "I0000 00:00:1795559223.171988   17476 cudart_stub.cc:31] Could not find cuda drivers\\n"
)
FAKE = f"""
import os, sys, warnings
os.write(2, b"{GREETING}")
print("ours", file=sys.stderr)
warnings.warn("also ours")
os.write(2, b"E0000 00:00:1795559223.171988   17476 file.cc:31] an error\\n")
if os.environ.get("FAIL"): raise ImportError("broken")
if os.environ.get("ABORT"): os.abort()
"""
PROGRAM = """
from idode_gin.feed import quiet
quiet.silence_tensorflow(); quiet.silence_tensorflow()
import sys
print(sum(type(each).__module__ == quiet.__name__ for each in sys.meta_path))
import tensorflow
print("after", file=sys.stderr)
"""


@pytest.fixture
def start(tmp_path):
    """Run PROGRAM with a fake TensorFlow; return (exit code, output, errors)."""
    (tmp_path / "tensorflow.py").write_text(FAKE)

    def call(**variables):
        environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
        environment |= {"PYTHONPATH": f"{tmp_path}:{os.getcwd()}", **variables}
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.mark.parametrize("level", [{}, {"TF_CPP_MIN_LOG_LEVEL": "1"}], ids=["unset", "by jax"])
def test_only_messages_of_the_import_are_dropped(start, level):
    code, output, errors = start(**level)
    assert (code, output) == (0, "1\n")
    assert "InitializeLog" not in errors
    assert "cudart" not in errors
    lines = errors.splitlines()
    assert lines[0] == "ours"
    assert "also ours" in lines[1]
    assert lines[-2].endswith("an error")
    assert lines[-1] == "after"


def test_an_import_that_fails_raises(start):
    code, _, errors = start(FAIL="1")
    assert code == 1
    assert "ours\n" in errors
    assert errors.endswith("ImportError: broken\n")


def test_an_import_that_ends_the_process_shows_where(start):
    code, _, errors = start(ABORT="1")
    assert code == -signal.SIGABRT
    assert errors.startswith("Fatal Python error: Aborted")
    assert "tensorflow.py" in errors


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_handler_of_faults_is_left_as_it_was(monkeypatch, is_enabled):
    calls = []
    monkeypatch.setattr(faulthandler, "is_enabled", lambda: is_enabled)
    for name in ("enable", "disable"):
        monkeypatch.setattr(faulthandler, name, lambda *_, name=name: calls.append(name))
    quiet.filtered(lambda: None)
    assert calls == ([] if is_enabled else ["enable", "disable"])


def test_the_log_level_of_the_environment_wins(start):
    code, _, errors = start(TF_CPP_MIN_LOG_LEVEL="0")
    assert code == 0
    assert "cudart" in errors


def test_standard_error_is_restored_after_an_exception(capfd):
    def fail():
        os.write(2, b"before\n")
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        quiet.filtered(fail)
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "before\nafter\n"
