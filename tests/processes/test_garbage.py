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
import gc
from idode_gin.processes import garbage

class Ring:
    def __init__(self, name):
        self.itself, self.name = self, name

    def __del__(self):
        print(self.name)

garbage.leave_to_the_end()
Ring("first")
gc.collect()
Ring("last")
"""


def test_at_the_end_nothing_is_collected():
    done = subprocess.run([sys.executable, "-c", RING], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["first"]
