"""Garbage is collected again after a pause, and only if it was before."""

import gc

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
