"""Processes that poll at different speeds stop at one poll, or none of them stops."""

import random
import threading
import time

import pytest

from idode_gin.processes import agreed_stop


class Store:
    """What all processes have published; a key keeps its first value."""

    def __init__(self):
        self._values, self._lock = {}, threading.Lock()

    def publish(self, key, value):
        with self._lock:
            self._values.setdefault(key, value)

    def found(self):
        with self._lock:
            return dict(self._values)


class Process:
    """A loop of steps, each with a poll, and the thread that watches the others.

    In some steps, those that have a barrier, it waits for all others.
    """

    def __init__(self, index, count, store, barriers):
        self.stop = agreed_stop.AgreedStop(store.publish, index, count)
        self.stopped_at, self._is_left = None, False
        self._index, self._store, self._barriers = index, store, barriers
        self.threads = [threading.Thread(target=each) for each in (self._loop, self._watch)]

    def _loop(self):
        draw = random.Random(self._index)
        for step, barrier in enumerate(self._barriers):
            time.sleep(draw.uniform(0, 0.004))
            if barrier is not None:
                barrier.wait(10)
            if self.stop.poll():
                self.stopped_at = step
                break
        self.stop.publish_polls()
        self._is_left = True

    def _watch(self):
        draw = random.Random(self._index)
        while not self._is_left:
            time.sleep(draw.uniform(0, 0.01))
            self.stop.look(self._store.found())


@pytest.fixture
def ended():
    """Run processes as threads, and return the steps at which they stopped."""

    def run(count, steps, asked, seed=0):
        store, draw = Store(), random.Random(seed)
        barriers = [threading.Barrier(count) if draw.random() < 0.3 else None for _ in range(steps)]
        found = [Process(index, count, store, barriers) for index in range(count)]
        threads = [thread for process in found for thread in process.threads]
        for thread in threads:
            thread.start()
        for index, seconds in asked:
            time.sleep(seconds)
            found[index].stop.ask()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive(), "a loop is held"
        return {each.stopped_at for each in found}

    return run


def test_a_process_that_has_left_is_not_waited_for():
    """Process 1 has made all its polls before process 0 is asked, and receives no more."""
    store = Store()
    here, gone = (agreed_stop.AgreedStop(store.publish, index, 2) for index in (0, 1))
    assert [gone.poll() for _ in range(3)] == [False] * 3
    gone.publish_polls()
    assert not here.poll()
    here.ask()
    here.look(store.found())
    here.look(store.found())
    assert [here.poll() for _ in range(2)] == [False] * 2  # as the other one did


@pytest.mark.parametrize("seed", range(4))
def test_all_stop_at_one_poll(ended, seed):
    (stopped_at,) = ended(5, 2000, [(seed, 0.1 * seed), (1, 0.0)], seed)
    assert stopped_at is not None
    assert stopped_at < 1000


def test_no_process_asks(ended):
    assert ended(3, 30, []) == {None}


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.05, 0.3])
def test_asked_on_the_last_steps_none_is_left_waiting(ended, seconds):
    """Either all stop or none."""
    assert len(ended(3, 20, [(0, seconds)])) == 1
