"""The lock on an output folder in a bucket: an object that its owner renews.

A bucket has no locks that end with a process. The object `run.lock` is made only where there is
none, and replaced only as the version that was read (a precondition of the request), so of several
processes one succeeds. Its owner replaces it every `RENEW` seconds. A new run takes it over when it
has not changed for `STALE` seconds on the new run's own clock (clocks of machines are not
compared), and at once if its owner was a process of this machine that is gone. An owner whose
object was replaced, after a pause or an outage, ends at its next renewal.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from absl import logging

from idode_gin import checks
from idode_gin.processes import failures
from idode_gin.reports import buckets, paths

RENEW, STALE = 15.0, 60.0
"""Seconds between two renewals; seconds without one after which a lease may be taken over."""
_LOOK = 3.0


@contextlib.contextmanager
def held(path: buckets.BucketPath, macro: str) -> Iterator[None]:
    """Context in which no other run holds the object at `path`; a thread renews it.

    Raises:
        ValueError: if another run holds it.
        paths.StoreError: if the bucket cannot be written to.
    """
    lease = _Lease(path)
    lease.acquire(macro)
    thread = threading.Thread(target=lease.keep, name="lease", daemon=True)
    thread.start()
    answers = True
    try:
        yield
    except paths.StoreError:
        answers = False  # nor would it now: the next run takes the object over
        raise
    finally:
        lease.is_over.set()
        if answers:
            thread.join()
            with contextlib.suppress(OSError):
                path.delete_version(lease.version)


class _Lease:
    """The object at `path`, and its version once this process has it."""

    def __init__(self, path: buckets.BucketPath) -> None:
        self.path, self.version, self.is_over = path, buckets.NO_VERSION, threading.Event()
        self._owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "token": uuid.uuid4().hex,
        }

    def acquire(self, macro: str) -> None:
        """Make the object, or replace that of a run which has ended without removing it."""
        expected = buckets.NO_VERSION
        while not self._replace(expected):
            if (found := self.path.read_version()) is None:  # removed meanwhile
                expected = buckets.NO_VERSION
                continue
            version, owner = found[0], _parsed(found[1])
            who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
            if expected not in (buckets.NO_VERSION, version):
                raise ValueError(
                    f"An output folder is for one run at a time, and {self.path.parent} is in use "
                    f"by {who}. Wait for its end, stop it, or choose another {macro}."
                )
            expected = version
            if not _is_gone(owner):
                waiting = f"Waiting up to {STALE:g} s for a sign of it."
                print(f"{self.path} names {who}. {waiting}", flush=True)
                self._watch(version)
        self._check_conditions()

    def _watch(self, version: str) -> None:
        """Return when the object has changed, or has not for `STALE` seconds."""
        deadline = time.monotonic() + STALE
        while time.monotonic() < deadline:
            time.sleep(min(_LOOK, STALE / 20))
            if (found := self.path.read_version()) is None or found[0] != version:
                return

    def _check_conditions(self) -> None:
        """Raise `paths.StoreError` if the store writes though a condition is not met."""
        for wrong in (buckets.NO_VERSION, "1"):
            with contextlib.suppress(FileExistsError):
                self.path.write_version(b"", wrong)
                self.path.unlink(missing_ok=True)
                raise paths.StoreError(
                    f"{self.path.parent} cannot be locked: its store ignores conditions of a "
                    "request (If-None-Match, If-Match), so two runs could write there at once. Use "
                    "a store that keeps them, as Google's and Amazon's do."
                )

    def keep(self) -> None:
        """Renew the object until `is_over`; end the program if another run has replaced it."""
        while not self.is_over.wait(RENEW):
            try:
                if self._replace(self.version):
                    continue
            except OSError as error:  # it is renewed when the store answers, if still ours
                logging.warning("%s was not renewed: %s", self.path, error)
                continue
            if not self.is_over.is_set():
                text = f"another run has taken over {self.path.parent}, because this one was silent"
                with contextlib.suppress(OSError):
                    if not self.path.exists():
                        text = f"{self.path} was removed, so that another run may begin there"
                print(f"error: {text}.", file=sys.stderr, flush=True)
                failures.fail(checks.EXIT_BAD_INPUT, text)
                os._exit(checks.EXIT_BAD_INPUT)

    def _replace(self, expected: str) -> bool:
        """Write the object if its version is `expected`; return True if it is this run's."""
        content = json.dumps({**self._owner, "renewed": time.time()}).encode()
        with contextlib.suppress(FileExistsError):
            self.version = self.path.write_version(content, expected)
            return True
        # A request that was repeated after its answer got lost finds its own object.
        found = self.path.read_version()
        if found is None or _parsed(found[1]).get("token") != self._owner["token"]:
            return False
        self.version = found[0]
        return True


def _machine() -> str:
    """Return an identifier of this machine or container; "" if the system has none."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _is_gone(owner: dict[str, Any]) -> bool:
    """Return True if the owner was a process of this machine that no longer runs."""
    if not owner.get("machine") or owner["machine"] != _machine():
        return False
    # This process itself has made no object yet: its number was an earlier one's.
    return owner["pid"] == os.getpid() or not os.path.exists(f"/proc/{owner['pid']}")


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError):
        return {}
