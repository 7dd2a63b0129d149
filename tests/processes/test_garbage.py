"""Garbage is collected again after a pause, and only if it was before."""

import gc
import subprocess
import sys

import pytest

from idode_gin.processes import garbage


@garbage.paused()
def fail():
    assert not gc.isenabled()
    raise ValueError("inside")


def test_a_pause_ends_as_it_began():
    assert gc.isenabled()
    with garbage.paused(), pytest.raises(ValueError, match="inside"):
        fail()
    assert gc.isenabled()
    with garbage.paused():
        with garbage.paused():
            pass
        assert not gc.isenabled()
    with pytest.raises(ValueError, match="inside"):
        fail()
    assert gc.isenabled()


RING = """
import atexit, gc
from idode_gin.processes import garbage

class Ring:
    def __init__(self):
        self.itself = self

    def __del__(self):
        print("collected")

before = Ring()
atexit.register(lambda: print("at the end"))
garbage.spare()
del before
gc.collect()
after = Ring()
del after
gc.collect()
last = Ring()
"""


def test_what_was_there_is_spared_and_so_is_everything_at_the_end():
    done = subprocess.run([sys.executable, "-c", RING], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["collected", "at the end", ""]
