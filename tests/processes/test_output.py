"""Printing never ends a program."""

import os
import subprocess
import sys

import pytest

from idode_gin.processes import output

PROGRAM = """
from idode_gin.processes import output
output.make_safe()
import sys
with open("file", "w") as file:
    print(f"3.7 ± 0.1 → “ü” {chr(0xdcff)}")
    print("é", file=sys.stderr)
    assert file.fileno() > 2
    sys.stdout.flush()
"""
ESCAPED = rb"3.7 \xb1 0.1 \u2192 \u201c\xfc\u201d \udcff"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PYTHONIOENCODING": "ascii"}, ESCAPED),
        ({"PYTHONIOENCODING": "latin-1"}, ESCAPED.replace(rb"\xb1", b"\xb1")),
        ({"PYTHONIOENCODING": "ascii:replace"}, b"3.7 ? 0.1 ? ??? ?"),
        ({"PYTHONUTF8": "1"}, "3.7 ± 0.1 → “ü” \\udcff".encode()),
        ({"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, ESCAPED),
    ],
)
def test_what_a_stream_cannot_hold_is_escaped(variables, expected, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    done = run(["program.py"], tmp_path, variables)
    assert done.returncode == 0
    assert done.stdout.strip() in (expected, expected.replace(rb"\xfc", b"\xfc"))


def test_the_output_of_a_program_is_escaped(tmp_path):
    experiment = "--gin_file=gin_configs/experiments/digits.gin"
    given = [experiment, "--dry_run", "--gin.MODEL_DIR='läufe/ß'"]
    done = run(["-m", "idode_gin.train", *given], tmp_path, {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert rb"l\xe4ufe/\xdf" in done.stdout


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams(closed, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    done = run(["-c", f"import os; os.execl('/bin/sh', 'sh', '-c', {shell(closed)!r})"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("file"))


SMALL = """
import sys
from idode_gin.processes import output

def main():
    if sys.argv[1] == "interrupted":
        raise KeyboardInterrupt
    print("x" * 100_000, flush=True)
    return 7

sys.exit(output.exit_code(main))
"""


@pytest.mark.parametrize(
    ("how", "code"), [("read > /dev/null", 7), ("closed | true", 141), ("interrupted", 75)]
)
def test_exit_codes_of_a_small_program(how, code, tmp_path):
    (tmp_path / "program.py").write_text(SMALL)
    command = f"set -o pipefail; {sys.executable} program.py {how}"
    done = run(["-c", f"import os; os.execlp('bash', 'bash', '-c', {command!r})"], tmp_path)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr


def test_a_complaint_that_nobody_reads_raises_nothing(monkeypatch):
    class Broken:
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    output.complain("what is wrong")


def shell(closed: str) -> str:
    return f"{sys.executable} program.py {closed}"


def run(arguments, folder, variables=None):
    paths = {"PYTHONPATH": os.getcwd()}
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONUTF8", "LC_ALL")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment | paths | (variables or {}),
        capture_output=True,
        timeout=200,
        check=False,
    )
