"""Several processes score, sample, encode and interpolate as one does, and stop together.

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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return several.made(tmp_path_factory.mktemp("made") / "run")


@pytest.mark.full
@pytest.mark.parametrize("name", ["eval", "sample"])
def test_scores_and_samples_as_one_process_does(checkpoint, tmp_path, name):
    found = []
    for count, devices in [(1, 4), (2, 2)]:
        output = tmp_path / f"{count}"
        given = command(name, checkpoint, output)
        with Processes(tmp_path / f"logs{count}", given, count, devices) as started:
            started.expect(0)
        with np.load(output / FILES[name]) as arrays:
            found.append(dict(arrays))
    alone, together = found
    assert alone.keys() == together.keys()
    for key in alone:
        np.testing.assert_array_equal(together[key], alone[key], err_msg=key)


@pytest.mark.full
@pytest.mark.parametrize("name", ["eval", "sample"])
def test_evaluation_and_sampling_stop_together(checkpoint, tmp_path, name):
    more = {
        "eval": [
            "--gin_file=gin_configs/solvers/dormand_prince.gin",
            "--gin.TOLERANCE=1e-6",
            "--gin.PILOT=None",
        ],
        "sample": ["--gin.Sampler.num_samples=100000"],
    }[name]
    given = [*command(name, checkpoint, tmp_path / "out"), *more]
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
def test_asked_in_the_first_compilation_all_leave_within_seconds(tmp_path, name, pilot, asked):
    """It takes long here: nothing is cached, and blocks are many. A pilot has no loop to poll."""
    levels = 24
    cache = f"--gin.COMPILATION_CACHE_DIR={str(tmp_path / 'cache')!r}"
    given = [
        *command(name, several.made(tmp_path / "run", levels=levels), tmp_path / "out"),
        *(f"--gin.UNet.levels={levels}", cache),
    ]
    if name == "eval" and not pilot:
        given += ["--gin_file=gin_configs/solvers/dormand_prince.gin", "--gin.PILOT=None"]
    with Processes(tmp_path / "logs", given, 2, 2) as started:
        started.wait_until(lambda: BEGINS[name] in started.outputs()[0])
        time.sleep(2)  # for the compilation to begin
        started.all[asked].send_signal(signal.SIGTERM)
        began = time.monotonic()
        started.expect(checks.EXIT_PREEMPTED, timeout=60)
        took = time.monotonic() - began
    assert took < 15
    words = "while starting or finishing" if pilot else r"after 0 of \d+ images of \w+"
    assert re.search(f"stopped: Stopped by SIGTERM {words}", started.outputs()[asked])
    assert not (tmp_path / "out" / "summary.json").exists()
