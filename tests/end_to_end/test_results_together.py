"""Several processes score, sample, encode and interpolate like one, and stop together.

Real processes on this machine, connected by gloo.
"""

import pathlib
import re
import signal
import time

import numpy as np
import pytest
import several
from several import ROOT, Processes

from idode_gin import checks

FILES = {
    "eval": "results.npz",
    "sample": "samples.npz",
    "encode": "latents.npz",
    "interpolate": "interpolation.npz",
}
BEGINS = {
    "eval": "Scoring",
    "sample": "Drawing",
    "encode": "Encoding",
    "interpolate": "Interpolating",
}
SETTINGS = {
    "eval": ["EVAL_SPLIT='validation'", "BPD_TOLERANCE=0.1"],
    "sample": ["Sampler.num_samples=20"],
    "encode": ["INDICES=(7, 0, 30, 12, 200)"],
    "interpolate": ["BATCH_SIZE=4", "PAIRS=((0, 1), (7, 3), (2, 200))", "NUM_POINTS=3"],
}
GRID = ["--gin_file=gin_configs/solvers/fixed_grid.gin", "--gin.FixedGrid.steps=20"]


def command(name: str, checkpoint: pathlib.Path, output: pathlib.Path, **unet: int) -> list[str]:
    network = {"channels": 8, "levels": 1, "groups": 2} | unet
    settings = [
        "BATCH_SIZE=32",
        f"CHECKPOINT_PATH={str(checkpoint)!r}",
        f"{name.upper()}_OUTPUT_DIR={str(output)!r}",
        *(f"UNet.{field}={value}" for field, value in network.items()),
        *SETTINGS[name],
    ]
    file = ROOT / f"gin_configs/experiments/digits_{name}.gin"
    return [
        *("-m", f"idode_gin.{name}", f"--gin_file={file}"),
        *(f"--gin.{each}" for each in settings),
    ]


def without_pilot(given: list[str]) -> list[str]:
    """Return the command with adaptive steps whose error is not measured."""
    kept = [each for each in given if not each.startswith("--gin.BPD_TOLERANCE")]
    return [*kept, "--gin_file=gin_configs/solvers/dormand_prince.gin", "--gin.PILOT=None"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return several.made(tmp_path_factory.mktemp("made") / "run")


def written(given: list[str], output: pathlib.Path, file: str, count: int, devices: int) -> dict:
    with Processes(output.parent / f"{output.name}_logs", given, count, devices) as started:
        started.expect(0)
    with np.load(output / file) as arrays:
        return dict(arrays)


def assert_close(found: dict, expected: dict) -> None:
    """Another number of devices rounds floats differently; levels are equal."""
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        if np.issubdtype(values.dtype, np.floating):
            tolerance = 1e-5 * np.max(np.abs(values), initial=1.0, where=~np.isnan(values))
            np.testing.assert_allclose(
                found[name], values, rtol=1e-5, atol=tolerance, equal_nan=True, err_msg=name
            )
        else:
            np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.full
@pytest.mark.parametrize("name", FILES)
def test_results_are_those_of_one_process(checkpoint, tmp_path, name):
    """Interpolation uses a fixed grid: solves of single pairs round differently on one device."""
    found, is_by_pairs = [], name == "interpolate"
    for count, devices in [(1, 4), (2, 2)]:
        output = tmp_path / str(count)
        given = command(name, checkpoint, output) + (GRID if is_by_pairs else [])
        found.append(written(given, output, FILES[name], count, devices))
    alone, together = found
    assert_close(together, alone)
    for key in () if is_by_pairs else alone:
        np.testing.assert_array_equal(together[key], alone[key], err_msg=key)


@pytest.mark.full
@pytest.mark.parametrize("sampler", ["ancestral", "heun", "dpm_solver_plus_plus", "ode"])
def test_every_sampler_on_a_mesh_of_two_processes(checkpoint, tmp_path, sampler):
    """Compared with one process with one device."""
    mesh = ["--gin.MESH_SHAPE={'data': 2, 'fsdp': 2}"]
    found = []
    for count, devices in [(1, 1), (2, 2)]:
        output = tmp_path / str(count)
        given = command("sample", checkpoint, output)
        given += [f"--gin_file=gin_configs/samplers/{sampler}.gin", *(mesh if count > 1 else [])]
        found.append(written(given, output, FILES["sample"], count, devices))
    assert_close(found[1], found[0])


@pytest.mark.full
def test_a_series_is_scored_as_by_one_process(tmp_path):
    """Stopped in the middle and resumed; the folders and the curve are the same."""
    run = several.made(tmp_path / "run", steps=(1, 2, 3))
    everything = ["--gin_file=gin_configs/checkpoints/all.gin"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    with Processes(tmp_path / "logs", command("eval", run, alone) + everything, 1, 4) as started:
        started.expect(0)
    given = command("eval", run, together) + everything
    with Processes(tmp_path / "logs", given, 2, 2) as started:
        started.wait_until(lambda: (together / "step_1/summary.json").exists())
        started.all[1].send_signal(signal.SIGTERM)
        started.expect(checks.EXIT_PREEMPTED, timeout=60)
    assert not (together / "step_3").exists()
    before = (together / "step_1/summary.json").read_bytes()
    with Processes(tmp_path / "logs", given, 2, 2) as started:
        started.expect(0)
        assert "checkpoint_1," not in started.outputs()[0]  # scored before the stop
    assert (together / "step_1/summary.json").read_bytes() == before
    for file in ("step_1/results.npz", "step_2/results.npz", "step_3/results.npz"):
        with np.load(alone / file) as expected, np.load(together / file) as found:
            assert_close(dict(found), dict(expected))
    expected, found = ((each / "curve.csv").read_text() for each in (alone, together))
    assert found.splitlines()[0] == expected.splitlines()[0]
    np.testing.assert_allclose(curve(together), curve(alone), rtol=1e-5)


def curve(folder: pathlib.Path) -> np.ndarray:
    return np.loadtxt(folder / "curve.csv", delimiter=",", skiprows=1)


@pytest.mark.full
@pytest.mark.parametrize("name", ["eval", "sample"])
def test_evaluation_and_sampling_stop_together(checkpoint, tmp_path, name):
    given = command(name, checkpoint, tmp_path / "out")
    if name == "eval":
        given = [*without_pilot(given), "--gin.TOLERANCE=1e-6"]
    else:
        given.append("--gin.Sampler.num_samples=100000")
    with Processes(tmp_path / "logs", given, 2, 2) as started:
        started.wait_until(lambda: BEGINS[name] in started.outputs()[0])
        started.all[1].send_signal(signal.SIGTERM)
        started.expect(checks.EXIT_PREEMPTED, timeout=120)
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "pilot", "asked"),
    [
        ("eval", True, 1),
        ("eval", False, 0),
        ("sample", False, 1),
        ("encode", False, 0),
        ("interpolate", False, 1),
    ],
)
def test_stopped_in_the_first_compilation_all_exit_within_seconds(tmp_path, name, pilot, asked):
    """Many blocks and no cache make the compilation long. A pilot has no loop that polls."""
    levels = 48
    cache = f"--gin.COMPILATION_CACHE_DIR={str(tmp_path / 'cache')!r}"
    given = [
        *command(name, several.made(tmp_path / "run", levels=levels), tmp_path / "out"),
        *(f"--gin.UNet.levels={levels}", cache),
    ]
    if name == "eval" and not pilot:
        given = without_pilot(given)
    with Processes(tmp_path / "logs", given, 2, 2) as started:
        begins = "pilot of" if pilot else BEGINS[name]
        started.wait_until(lambda: begins in started.outputs()[0])
        time.sleep(3)  # for the compilation to begin
        started.all[asked].send_signal(signal.SIGTERM)
        began = time.monotonic()
        started.expect(checks.EXIT_PREEMPTED, timeout=60)
        took = time.monotonic() - began
    assert took < 15
    unit = "pairs" if name == "interpolate" else "images"
    words = "while starting or finishing" if pilot else rf"after 0 of \d+ {unit} of \w+"
    assert re.search(f"stopped: Stopped by SIGTERM {words}", started.outputs()[asked])
    assert not (tmp_path / "out" / "summary.json").exists()
