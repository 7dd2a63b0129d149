"""A pilot divided among the devices of a process: the same report, in less time."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    """Rows of each device, reports and local errors by number of images, on three devices."""
    script = ROOT / "tests" / "support" / "spread_pilot.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("number", "rows"), [(6, 2), (4, 2), (5, 5)])
def test_as_many_devices_as_divide_the_images_have_equal_parts(found, number, rows):
    assert found[str(number)]["rows"] == [rows]


@pytest.mark.parametrize("number", [6, 4, 5])
def test_a_divided_pilot_reports_the_same(found, number):
    whole, divided = found[str(number)]["reports"]
    figures = {name for name, value in whole.items() if isinstance(value, float)}
    assert {"error", "bias", "reference_error"} <= figures
    for name, value in whole.items():
        is_figure = name in figures
        assert divided[name] == (pytest.approx(value, rel=1e-6) if is_figure else value)
    whole, divided = map(np.asarray, found[str(number)]["defects"])
    assert whole.shape == (17, number)
    assert divided == pytest.approx(whole, rel=1e-6, abs=1e-9 * np.abs(whole).max())
