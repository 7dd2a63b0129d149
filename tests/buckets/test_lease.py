"""Two runs in one folder of a bucket: one is refused; what a dead one left is taken over."""

import json
import os
import threading
import time

import pytest

from idode_gin.reports import buckets, paths
from idode_gin.runs import lease, run_lock


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(lease, "RENEW", 0.1)
    monkeypatch.setattr(lease, "STALE", 1.0)


@pytest.fixture
def elsewhere(monkeypatch):
    """Leases of this process look like those of another machine."""
    machines = iter(range(100))
    monkeypatch.setattr(lease, "_machine", lambda: f"machine {next(machines)}")


@pytest.mark.usefixtures("elsewhere")
def test_a_second_run_is_refused_while_the_first_renews(bucket, capsys):
    path = bucket / run_lock.NAME
    with run_lock.held(bucket), run_lock.held(bucket):
        before = path.read_version()[0]
        refusal = (
            f"{bucket.parent}/.* is in use by process {os.getpid()} on .* choose another MODEL_DIR"
        )
        with pytest.raises(ValueError, match=refusal), lease.held(path, "MODEL_DIR"):
            pass
        assert path.read_version()[0] != before  # renewed
        assert "Waiting up to 1 s for a sign of it." in capsys.readouterr().out
    assert not bucket.exists()


@pytest.mark.usefixtures("elsewhere")
def test_a_silent_one_is_taken_over_in_the_stated_time(bucket):
    path = bucket / run_lock.NAME
    path.write_bytes(b'{"pid": 1, "host": "gone", "machine": "of another"}')
    began = time.monotonic()
    with run_lock.held(bucket):
        assert lease.STALE <= time.monotonic() - began < lease.STALE + 1
        assert json.loads(path.read_bytes())["pid"] == os.getpid()
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}"])
def test_a_damaged_one_is_taken_over(content, bucket):
    (bucket / run_lock.NAME).write_bytes(content)
    with run_lock.held(bucket):
        assert json.loads((bucket / run_lock.NAME).read_bytes())["pid"] == os.getpid()
    assert not (bucket / run_lock.NAME).exists()


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(bucket, monkeypatch):
    monkeypatch.setattr(lease, "STALE", 60.0)
    machine = lease._machine()
    for number in (os.getpid(), 2**22 + 1):
        content = json.dumps({"pid": number, "host": "here", "machine": machine}).encode()
        (bucket / run_lock.NAME).write_bytes(content)
        began = time.monotonic()
        with run_lock.held(bucket):
            assert time.monotonic() - began < 5


@pytest.mark.usefixtures("elsewhere")
def test_of_two_at_once_one_gets_it(bucket):
    path = bucket / run_lock.NAME
    path.write_bytes(b'{"pid": 1, "host": "gone", "machine": "of another"}')
    leases = [lease._Lease(path) for _ in range(4)]
    outcomes = []

    def acquire(each):
        try:
            each.acquire("MODEL_DIR")
            outcomes.append("held")
            each.keep()
        except ValueError:
            outcomes.append("refused")

    threads = [threading.Thread(target=acquire, args=(each,)) for each in leases]
    for each in threads:
        each.start()
    while len(outcomes) < len(leases):
        time.sleep(0.05)
    for each in leases:
        each.is_over.set()
    for each in threads:
        each.join()
    assert sorted(outcomes) == ["held", "refused", "refused", "refused"]


@pytest.mark.usefixtures("elsewhere")
def test_a_request_whose_answer_got_lost_is_this_runs(bucket, monkeypatch):
    """The store has written, and refuses the request when it is repeated."""
    path, write, lost = bucket / run_lock.NAME, type(bucket).write_version, []

    def write_version(path, data, expected):
        found = write(path, data, expected)
        if data and len(lost) < 2:
            lost.append(found)
            raise FileExistsError
        return found

    monkeypatch.setattr(type(bucket), "write_version", write_version)
    monkeypatch.setattr(lease, "RENEW", 60.0)
    with run_lock.held(bucket):
        assert path.read_version()[0] == lost[0]
    assert not path.exists()
    lost.clear()
    monkeypatch.setattr(lease, "RENEW", 0.1)
    with run_lock.held(bucket):  # also if it is that of a renewal
        while len(lost) < 2:
            time.sleep(0.02)
    assert not path.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b'{"pid": 1, "host": "other"}', "another run has taken"), (None, "run.lock was removed")],
)
def test_an_owner_whose_lease_was_lost_ends(bucket, monkeypatch, capsys, content, reason):
    path, ended = bucket / run_lock.NAME, threading.Event()

    def leave(code):
        assert code == 2
        ended.set()
        raise SystemExit

    monkeypatch.setattr(lease.os, "_exit", leave)
    mine = lease._Lease(path)
    mine.acquire("MODEL_DIR")
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit):
        mine.keep()
    assert ended.is_set()
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("ignored", ["all", "of a version"])
def test_a_store_that_ignores_conditions_is_refused(bucket, monkeypatch, ignored):
    write = type(bucket).write_version

    def write_version(path, data, expected):
        if expected == buckets.NO_VERSION and ignored == "of a version":
            return write(path, data, expected)
        path.write_bytes(data)
        return "1"

    monkeypatch.setattr(type(bucket), "write_version", write_version)
    refusal = "cannot be locked: its store ignores conditions"
    with pytest.raises(paths.StoreError, match=refusal), run_lock.held(bucket):
        pass
    assert not bucket.exists()


def test_a_lock_that_was_removed_is_not_made_again(bucket):
    path = bucket / run_lock.NAME
    mine = lease._Lease(path)
    mine.acquire("MODEL_DIR")
    path.unlink()
    with pytest.raises(FileExistsError):
        path.write_version(b"{}", mine.version)
