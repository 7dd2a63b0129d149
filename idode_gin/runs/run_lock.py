"""One run at a time in a run directory.

The run holds a lock on a file, which the system lets go of when the process ends, however it ends:
a killed run never blocks the next one. Where a file system does not pass locks on between hosts, a
heartbeat stands in: the file's time is renewed every few seconds, and who finds another host's name
in it waits whether that happens.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from idode_gin.reports import files

NAME = "run.lock"
BEAT_SECONDS = 5.0
WATCH_SECONDS = 16.0
"""Without a heartbeat for so long, a run on another host is taken to be over."""
_held: set[pathlib.Path] = set()


@contextlib.contextmanager
def held(directory: str | pathlib.Path, *, is_first: bool = True) -> Iterator[None]:
    """A context in which no other process trains in `directory`; within it, a second one is free.

    Args:
        directory: the run directory, made if it is not there.
        is_first: whether this is process 0 of a run; the others have its lock.

    Raises:
        ValueError: if another run is alive there.
    """
    path = pathlib.Path(directory).absolute() / NAME
    if not is_first or path in _held:
        yield
        return
    number = _acquire(path)
    stopped = threading.Event()
    beating = threading.Thread(target=_beat, args=(number, stopped), daemon=True)
    beating.start()
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        stopped.set()
        beating.join()
        # While it is still locked: whoever waits for it finds that it is not the file there.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(number)


def _acquire(path: pathlib.Path) -> int:
    with files.naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with files.naming(path):
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(number, path)
            if not _is_there(number, path):
                os.close(number)
                continue
            _watch(number, path)
            owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
            with files.naming(path):
                os.ftruncate(number, 0)
                os.pwrite(number, json.dumps(owner).encode(), 0)
            return number
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(number)
            raise


def _lock(number: int, path: pathlib.Path) -> None:
    """Locks the file; where the file system knows no locks, the heartbeat has to do."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise ValueError(_refusal(path, _owner(number))) from error
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _is_there(number: int, path: pathlib.Path) -> bool:
    """Whether the open file is the one of that name, not one that its owner just removed."""
    try:
        return os.path.samestat(os.fstat(number), os.stat(path))
    except FileNotFoundError:
        return False


def _watch(number: int, path: pathlib.Path) -> None:
    """Raises ValueError if a run on another host is seen to be alive."""
    owner = _owner(number)
    if owner.get("host") in (None, socket.gethostname()):
        return
    # One clock only, the file's: those of two hosts differ.
    before = os.fstat(number).st_mtime_ns
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, WATCH_SECONDS / 8))
        if not _is_there(number, path):
            return
        if os.stat(path).st_mtime_ns != before:
            raise ValueError(_refusal(path, owner))


def _beat(number: int, stopped: threading.Event) -> None:
    while not stopped.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(number)


def _owner(number: int) -> dict[str, Any]:
    """What the file says of its owner; {} if it was killed before it could write that."""
    try:
        found = json.loads(os.pread(number, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(path: pathlib.Path, owner: dict[str, Any]) -> str:
    who = f"process {owner.get('pid')} on {owner.get('host')}" if owner else "another process"
    return (
        f"A run directory is for one run at a time, and {path.parent} is in use by {who}. Wait for "
        "its end, stop it, or choose another MODEL_DIR."
    )
