"""A save or restore is waited for as long as the bucket answers."""

import pathlib
import threading
import time

import pytest

from idode_gin.checkpoints import waiting
from idode_gin.reports import buckets, paths

FOLDER = buckets.BucketPath("gs://bucket/run")


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(waiting, "LOOK", 0.02)
    monkeypatch.setattr(waiting, "PATIENCE", 0.2)


@pytest.fixture
def held():
    """An act that does not end before the test does."""
    over = threading.Event()
    yield over.wait
    over.set()


def looks(monkeypatch, look):
    monkeypatch.setattr(buckets.BucketPath, "exists", lambda _: look())


def test_a_slow_one_ends_when_it_is_done(monkeypatch):
    count = []
    looks(monkeypatch, lambda: count.append(1))
    assert waiting.while_answering(FOLDER, lambda: time.sleep(0.3) or 5) == 5
    assert len(count) > 3


def test_errors_are_those_of_the_act(monkeypatch):
    looks(monkeypatch, bool)
    for error in (TimeoutError, ValueError, KeyboardInterrupt):
        with pytest.raises(error, match="its own"):
            waiting.while_answering(FOLDER, lambda error=error: raised(error("its own")))


def raised(error):
    raise error


def test_given_up_when_the_bucket_does_not_answer(monkeypatch, held):
    looks(monkeypatch, lambda: raised(paths.StoreError("cannot be reached: no route")))
    with pytest.raises(paths.StoreError, match="no route"):
        waiting.while_answering(FOLDER, held)
    looks(monkeypatch, held)
    with pytest.raises(paths.StoreError, match="gs://bucket/run .* no answer in 0.2 s"):
        waiting.while_answering(FOLDER, held)


def test_a_disk_is_not_looked_at():
    own = threading.current_thread()
    assert waiting.while_answering(pathlib.Path("runs"), threading.current_thread) is own
