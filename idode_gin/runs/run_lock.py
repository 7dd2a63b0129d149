"""A lock on an output folder: one program at a time.

It is `flock` on a file, which the system releases when the process ends, however it ends: a killed
run never blocks the next one. `filelock` from PyPI makes the same call; it would save no line here,
because the holder is named and the file removed.

Some network file systems do not pass locks on to other machines (NFS mounted with `nolock` or
`local_lock=flock`, Lustre without `flock`, several FUSE ones): there, a run on another machine is
not noticed. Where locks are not supported at all, a warning is logged. For a folder in a bucket see
`lease`.
"""

import contextlib
import errno
import json
import os
import pathlib
import socket
from collections.abc import Iterator

from idode_gin.reports import files, paths

NAME = "run.lock"
_held: dict[pathlib.Path, tuple[int, os.stat_result] | None] = {}
"""Locks of this process: the open file, and its folder; None in a bucket, where `lease` ends the
program that lost it."""


@contextlib.contextmanager
def held(
    directory: str | pathlib.Path, *, is_first: bool = True, macro: str = "MODEL_DIR"
) -> Iterator[None]:
    """Context in which no other process writes to `directory`; it may be entered again within.

    Args:
        directory: the output folder; made if it is missing.
        is_first: True in process 0 of a program, which alone takes the lock.
        macro: the folder's name in the gin files, for error messages.

    Raises:
        ValueError: if another program has the lock.
        OSError: if the lock cannot be written; if it is entered again and the folder was replaced.
    """
    path = paths.of(directory).absolute() / NAME
    if not is_first or path in _held:
        check(directory)
        yield
        return
    if paths.in_bucket(path):
        from idode_gin.runs import lease

        _held[path] = None
        try:
            with lease.held(path, macro):  # type: ignore[arg-type]
                yield
        finally:
            del _held[path]
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number = _acquire(path, macro)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written: {error.strerror}. Make {path.parent} writable, with some "
            f"free space, or choose another {macro}."
        ) from error
    _held[path] = number, os.stat(path.parent)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            check(directory)
            path.unlink()  # while it is locked: the next owner then finds that it is gone
        del _held[path]
        os.close(number)


def check(directory: str | os.PathLike[str]) -> None:
    """Raise OSError if `directory` is in a folder that was replaced since it was locked.

    Another run may have begun at the same path: nothing may be written there. Folders that this
    process holds no lock of are not checked.
    """
    directory = paths.of(directory).absolute()
    for path, lock in list(_held.items()):
        if lock is not None and path.parent in (directory, *directory.parents):
            _check_held(path, *lock)


def _check_held(path: pathlib.Path, number: int, folder: os.stat_result) -> None:
    """Check that the lock at `path` is the open file `number`, or its folder is still `folder`."""
    try:
        if os.path.samestat(os.fstat(number), os.stat(path)):
            return
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
    with contextlib.suppress(FileNotFoundError):
        if not path.exists() and os.path.samestat(folder, os.stat(path.parent)):
            return  # someone removed the lock alone
    raise OSError(
        f"{path.parent} was deleted, moved or replaced while this run wrote to it, so it ends. "
        "Another run may use that path now. To continue this one, put its folder back and run the "
        "same command again."
    )


def _acquire(path: pathlib.Path, macro: str) -> int:
    """Return the open, locked file, with its owner in it."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(number, path, macro)
            if os.path.samestat(os.fstat(number), os.stat(path)):
                owner = {"host": socket.gethostname(), "pid": os.getpid()}
                os.ftruncate(number, 0)
                os.pwrite(number, json.dumps(owner).encode(), 0)
                return number
        except FileNotFoundError:  # its last owner has just removed it
            pass
        except BaseException:
            os.close(number)
            raise
        os.close(number)


def _lock(number: int, path: pathlib.Path, macro: str) -> None:
    try:
        files.lock(number, path, wait=False)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        who = "another process"
        with contextlib.suppress(ValueError, KeyError, TypeError):  # its owner may be writing it
            owner = json.loads(os.pread(number, 4096, 0))
            who = f"process {owner['pid']} on {owner['host']}"
        raise ValueError(
            f"An output folder is for one run at a time, and {path.parent} is in use by {who}. "
            f"Wait for its end, stop it, or choose another {macro}."
        ) from error
