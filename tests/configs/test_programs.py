"""The programs, run from a shell."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = ["train", "eval", "sample", "encode", "interpolate"]
EXPERIMENT = "--gin_file=gin_configs/experiments/digits.gin"


def run(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), str(ROOT / "tests" / "configs")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_imports_nothing_heavy(program: str, tmp_path: pathlib.Path) -> None:
    done = run(tmp_path, "-X", "importtime", "-m", f"idode_gin.{program}", "--help")
    assert done.returncode == 0
    assert f"python -m idode_gin.{program} --gin_file=" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "gin.config" in imported
    assert not imported & {"jax", "flax", "tensorflow", "seqio", "optax", "orbax", "scipy"}


def test_misspelt_macro_ends_in_2(tmp_path: pathlib.Path) -> None:
    done = run(tmp_path, "-m", "idode_gin.train", EXPERIMENT, "--gin.TRAIN_STEP=7")
    assert done.returncode == 2
    assert done.stderr == (
        "error: TRAIN_STEP is not used by anything [--gin.TRAIN_STEP=7]. "
        "Did you mean 'TRAIN_STEPS'?\n"
    )
    assert not list(tmp_path.iterdir())


def test_dry_run_describes_and_writes_nothing(tmp_path: pathlib.Path) -> None:
    done = run(tmp_path, "-m", "idode_gin.train", EXPERIMENT, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "Would train from scratch" in done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert not list(tmp_path.iterdir())


def test_error_class_of_the_program_itself_is_not_doubled(tmp_path: pathlib.Path) -> None:
    """`python -m` runs the module that gin files import, so that its classes exist once."""
    (tmp_path / "stop.gin").write_text(
        "from __gin__ import dynamic_registration\nimport toy_program as toy\n"
        "toy.main:\n    steps = 1\n    folder = 'a'\n    wheel = @toy.Wheel()\n"
        "    engine = @toy.Wheel()\n    fail = @toy.stop\n"
    )
    done = run(tmp_path, "-m", "toy_program", "--gin_file=stop.gin")
    assert (done.returncode, done.stderr) == (75, "stopped: saved at step 3\n")


def test_output_cut_short_by_head_is_no_traceback(tmp_path: pathlib.Path) -> None:
    script = f"{sys.executable} -m toy_program --help | head -n 1"
    done = run(tmp_path, "-c", f"import os; os.system({script!r})")
    assert done.stdout == "Toys.\n"
    assert done.stderr == ""


def test_finds_gin_configs_from_an_installed_package(tmp_path: pathlib.Path) -> None:
    """Without a checkout, the gin files are found beside the package."""
    (tmp_path / "site").mkdir()
    for package in ("idode_gin", "gin_configs", "tasks"):
        (tmp_path / "site" / package).symlink_to(ROOT / package)
    script = (
        "import sys; sys.path[:0] = [sys.argv[1]]; import idode_gin;"
        "from idode_gin.configs import building, loading; import json;"
        "print(json.dumps(str(loading.find_file("
        "'gin_configs/runs/train.gin', loading.search_paths()).resolve())))"
    )
    done = run(tmp_path, "-c", script, str(tmp_path / "site"))
    assert json.loads(done.stdout) == str(ROOT / "gin_configs/runs/train.gin")


@pytest.mark.parametrize(
    ("program", "more"),
    [
        *((program, None) for program in PROGRAMS[1:]),
        ("eval", "--gin_file=gin_configs/checkpoints/all.gin"),
    ],
)
def test_missing_checkpoint_is_reported_before_anything_heavy(
    program: str, more: str | None, tmp_path: pathlib.Path
) -> None:
    given = [f"--gin_file=gin_configs/experiments/digits_{program}.gin", *([more] if more else [])]
    done = run(tmp_path, "-X", "importtime", "-m", f"idode_gin.{program}", *given)
    assert done.returncode == 2
    assert "error: No checkpoint at" in done.stderr
    assert "| tensorflow\n" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", PROGRAMS)
def test_asked_to_stop_while_it_imports(program: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "gin").mkdir()
    (tmp_path / "gin" / "__init__.py").write_text(
        "import time; print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", f"idode_gin.{program}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 75
    assert "stopped: Stopped by SIGTERM while starting" in errors
    assert "Traceback" not in errors
