"""What a process does about an error that may come from the loss of another one."""

import threading
import types

import pytest

from idode_gin.processes import failures


class JaxRuntimeError(RuntimeError):
    """As a collective raises it whose other side is gone."""


@pytest.fixture
def happened(monkeypatch):
    """Events of one of several processes; its thread notices a loss if `is_lost` is set."""
    events = []

    def wait(seconds):
        events.append("waited")
        return is_lost.is_set()

    is_lost = threading.Event()
    watch = types.SimpleNamespace(is_leaving=types.SimpleNamespace(wait=wait))
    monkeypatch.setattr(failures, "_watch", watch)
    monkeypatch.setattr(failures.time, "sleep", lambda _: events.append("slept"))
    return is_lost, events


def test_a_loss_is_reported_by_the_thread_that_notices_it(happened):
    is_lost, events = happened
    is_lost.set()
    failures.give_way(JaxRuntimeError())
    assert events == ["waited", "slept"]


def test_without_one_the_error_is_reported_after_a_moment(happened):
    _, events = happened
    failures.give_way(JaxRuntimeError())
    assert events == ["waited"]


def test_other_errors_are_reported_at_once(happened):
    is_lost, events = happened
    is_lost.set()
    failures.give_way(ValueError())
    assert events == []


def test_a_single_process_reports_all_at_once(happened, monkeypatch):
    is_lost, events = happened
    is_lost.set()
    monkeypatch.setattr(failures, "_watch", None)
    monkeypatch.setattr(failures.os, "_exit", lambda code: events.append("left"))
    failures.give_way(JaxRuntimeError())
    failures.fail(1, "of no other process's concern")
    assert events == []
