"""The command `idode-gin`, and `--version` of every program."""

import os
import pathlib
import subprocess
import sys

import pytest

import idode_gin
from idode_gin.__main__ import PROGRAMS, completion, main, usage

ROOT = pathlib.Path(__file__).parents[2]
VERSION = f"idode_gin {idode_gin.__version__}\n"


def run(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_version_of_every_program(name: str, tmp_path: pathlib.Path) -> None:
    done = run(tmp_path, PROGRAMS[name][0], "--version")
    assert (done.returncode, done.stdout) == (0, VERSION)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["train", "prepare"])
def test_a_program_is_that_of_python_m(name: str, tmp_path: pathlib.Path) -> None:
    ours, theirs = (
        run(tmp_path, "idode_gin", name, "--help"),
        run(tmp_path, PROGRAMS[name][0], "-h"),
    )
    assert ours.returncode == theirs.returncode == 0
    assert ours.stdout == theirs.stdout
    wrong = run(tmp_path, "idode_gin", "train", "--gin_flie=a")
    assert (wrong.returncode, "Did you mean --gin_file?" in wrong.stderr) == (2, True)


def test_an_own_module_is_found_in_the_current_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "my_parts.py").write_text("raise ValueError('it was imported')")
    (tmp_path / "my.gin").write_text("import my_parts\n")
    start = "import sys; sys.path.remove(''); from idode_gin.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", start, "train", "--gin_file=my.gin"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "it was imported" in done.stderr) == (2, True)


def test_the_command_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == VERSION
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == usage() + "\n"
    for name in PROGRAMS:
        assert f"  {name} " in usage()
    assert main([]) == main(["evl"]) == main(["completion", "fish"]) == 2
    errors = capsys.readouterr().err
    assert "error: no program named." in errors
    assert "error: there is no program 'evl'. Did you mean 'eval'?" in errors
    assert "completion for bash only" in errors
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == completion()


@pytest.mark.parametrize(
    ("line", "word", "expected"),
    [
        ("idode-gin ev", 1, ["eval"]),
        ("idode-gin ", 1, [*PROGRAMS, "completion"]),
        ("idode-gin eval --gin_f", 2, ["--gin_file="]),
        ("idode-gin eval --dry", 2, ["--dry_run"]),
        (
            "idode-gin eval --gin_file=gin_configs/checkpoints/a",
            4,
            ["gin_configs/checkpoints/all.gin"],
        ),
        ("idode-gin eval --gin_file=my", 4, ["my_own.gin"]),
        ("idode-gin eval my", 2, []),
    ],
)
def test_completion_in_bash(
    line: str, word: int, expected: list[str], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "my_own.gin").touch()
    script = f"{completion()}\nCOMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; COMP_CWORD={word}\n"
    script += '_idode_gin; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert [each for each in done.stdout.splitlines() if each] == expected
