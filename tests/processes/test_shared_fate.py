"""What a process makes of an error that may be the loss of another one."""

import threading
import time
import types

import pytest

from idode_gin.processes import shared_fate


class JaxRuntimeError(RuntimeError):
    """As a collective raises it whose other side is gone."""


@pytest.fixture
def watch(monkeypatch):
    """Of several processes."""
    found = types.SimpleNamespace(is_leaving=threading.Event())
    monkeypatch.setattr(shared_fate.Watch, "_current", found)
    monkeypatch.setattr(shared_fate, "_MOMENT", 0.2)
    monkeypatch.setattr(shared_fate, "_FOR_GOOD", 0.6)
    return found


def seconds(error):
    began = time.monotonic()
    shared_fate.give_way(error)
    return time.monotonic() - began


def test_a_loss_is_told_by_who_notices_it(watch):
    threading.Timer(0.05, watch.is_leaving.set).start()
    assert seconds(JaxRuntimeError()) >= 0.6


def test_without_one_the_error_is_told_after_a_moment(watch):
    assert 0.2 <= seconds(JaxRuntimeError()) < 0.6


def test_other_errors_are_told_at_once(watch):
    watch.is_leaving.set()
    assert seconds(ValueError()) < 0.2


def test_of_one_process_all_are():
    assert seconds(JaxRuntimeError()) < 0.2
