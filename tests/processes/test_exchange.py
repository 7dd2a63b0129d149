"""Values and errors that all processes get from one, or from any."""

import itertools

import jax
import numpy as np
import pytest

from idode_gin.processes import exchange
from idode_gin.reports import paths


@pytest.fixture
def one_after_the_other(monkeypatch):
    """Run a function as process 0, then as process 1, which gets what the first one sent."""

    def run(fn):
        sent, found = [], []
        monkeypatch.setattr(exchange.joining, "wait_for_all", lambda _: None)
        monkeypatch.setattr(jax, "process_count", lambda: 2)

        def broadcast(value):
            if jax.process_index() == 0:
                sent.append(value)
                return value
            first = sent.pop(0)
            assert first.shape == value.shape
            return first

        monkeypatch.setattr(exchange.multihost_utils, "broadcast_one_to_all", broadcast)
        for index in range(2):
            monkeypatch.setattr(jax, "process_index", lambda index=index: index)
            try:
                found.append(fn(index))
            except (ValueError, OSError) as error:
                found.append((type(error), str(error)))
        assert not sent
        return found

    return run


@pytest.mark.parametrize("content", [b"", b"\0", b"a", bytes(range(256)), None])
def test_all_get_the_content_of_the_first(one_after_the_other, content):
    def make(index):
        return exchange.from_first(lambda: content if index == 0 else pytest.fail("called"))

    assert one_after_the_other(make) == 2 * [content or b""]


def test_the_others_wait_for_what_the_first_makes_before_a_collective(
    one_after_the_other, monkeypatch
):
    done = []

    def make(_):
        monkeypatch.setattr(exchange.joining, "wait_for_all", lambda _: done.append("waited"))
        return exchange.from_first(lambda: done.append("made"))

    one_after_the_other(make)
    assert done == ["made", "waited", "waited"]


@pytest.mark.parametrize("kind", [ValueError, OSError, paths.StoreError])
def test_all_raise_the_error_of_the_first(one_after_the_other, kind):
    def refuse():
        raise kind("not here")

    assert one_after_the_other(lambda _: exchange.from_first(refuse)) == 2 * [(kind, "not here")]


@pytest.mark.parametrize("flags", itertools.product([False, True], repeat=3))
def test_a_flag_of_any_process_is_everybodys(monkeypatch, flags):
    gather = exchange.multihost_utils
    monkeypatch.setattr(gather, "process_allgather", lambda _: np.asarray(flags))
    assert exchange.is_any(flags[0]) == flags[0]  # a single process
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    assert [exchange.is_any(each) for each in flags] == 3 * [any(flags)]
