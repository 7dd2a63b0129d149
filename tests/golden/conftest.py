"""Fixtures of the golden tests."""

import pytest

from . import cases


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Runs a test in both precisions; its value is the name of the dtype."""
    with cases.precision(request.param):
        yield request.param


@pytest.fixture
def float64():
    """Runs a test in float64 only."""
    with cases.precision("float64"):
        yield "float64"
