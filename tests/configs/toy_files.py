"""Gin files for the toy program."""

import pathlib
from collections.abc import Sequence

import toy_program

from idode_gin.configs import building
from idode_gin.configs.reach import Reach

HEADER = """
from __gin__ import dynamic_registration
import toy_program as toy
"""
RUN = f"""{HEADER}
STEPS = %gin.REQUIRED
FOLDER = %gin.REQUIRED
WHEEL = %gin.REQUIRED
toy.main:
    steps = %STEPS
    folder = %FOLDER
    wheel = %WHEEL
    engine = @toy.Engine()
toy.Engine.power = 2.0
"""
EXPERIMENT = f"""{HEADER}
include 'run.gin'
STEPS = 10
FOLDER = 'runs/a'
WHEEL = @toy.Wheel()
WHEEL/toy.Wheel.size = 4
"""


def write(folder: pathlib.Path, more: str = "") -> None:
    """Write `run.gin` and `experiment.gin`, the latter with `more` lines."""
    (folder / "run.gin").write_text(RUN)
    (folder / "experiment.gin").write_text(EXPERIMENT + more)


def load(folder: pathlib.Path, more: str = "", bindings: Sequence[str] = ()) -> Reach:
    """Load and check the toy experiment with `more` lines and command-line `bindings`."""
    write(folder, more)
    files, paths = ["experiment.gin"], [str(folder)]
    return building.load_and_check(toy_program.main, files, bindings, paths)
