"""Atomic writes: a file is either complete or absent."""

import contextlib
import errno
import fcntl
import io
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import IO, Any, TypeVar

import numpy as np
from absl import logging

from idode_gin.reports import paths

T = TypeVar("T")
Found = TypeVar("Found")
_THREADS, _UNDER_WAY = 16, 128
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def write_atomically(
    path: str | os.PathLike[str], content: str | bytes | Callable[[IO[bytes]], Any]
) -> None:
    """Replace the file at `path`. A concurrent reader sees the old or the new content.

    Args:
        path: path of the file; missing folders are created.
        content: the content, or a function that writes it to an open file.

    Raises:
        OSError: if the write fails, with `path` in the message; the old content is kept. In a
            bucket it is a `paths.StoreError`.
    """

    def write(file: IO[bytes]) -> None:
        if callable(content):
            content(file)
        else:
            file.write(content.encode() if isinstance(content, str) else content)

    if paths.in_bucket(path):
        buffer = io.BytesIO()
        write(buffer)
        paths.of(path).write_bytes(buffer.getvalue())
        return
    path = pathlib.Path(path)
    partial = partial_path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def partial_path(path: pathlib.Path) -> pathlib.Path:
    """Return a path beside `path` to write it at first, which no other process or machine uses."""
    return path.with_name(f".{path.name}.{os.getpid()}_{secrets.token_hex(4)}.partial")


def flush(path: pathlib.Path) -> None:
    """Write a file or a folder's entries from the page cache to the disk.

    Some network file systems flush files alone: a folder that cannot be flushed is left.
    """
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(number)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if there is no file, or it holds something else.

    Raises:
        OSError: if it cannot be read: that does not say that it is not there.
    """
    try:
        return dict(json.loads(paths.of(path).read_bytes()))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def side_by_side(function: Callable[[T], Found], items: Sequence[T]) -> Iterator[Found]:
    """Yield `function` of each item, in order; several are worked on at a time.

    A request to a bucket mostly waits. At most `_UNDER_WAY` more are done if the caller stops.
    """
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(items), _UNDER_WAY):
            yield from pool.map(function, items[start : start + _UNDER_WAY])


def lock(number: int, path: str | os.PathLike[str], *, wait: bool) -> bool:
    """Lock the open file `number` at `path` until it is closed, or the process dies.

    Returns:
        True; False, with a warning in the log, where the file system has no locks, as some that
        are mounted over a network.

    Raises:
        OSError: if it is locked and this does not `wait`: EWOULDBLOCK, on some systems EACCES.
    """
    try:
        fcntl.flock(number, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        logging.warning("%s: %s. Another run there is not noticed.", path, error.strerror)
        return False
    return True


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Remove a folder with what it holds; errors on this machine are ignored."""
    if paths.in_bucket(path):
        from idode_gin.reports import buckets

        buckets.BucketPath(path).rmtree(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def copy_folder(source: str, target: str | os.PathLike[str]) -> None:
    """Write the files of a folder on this machine to a folder in a bucket."""
    for path in sorted(each for each in pathlib.Path(source).rglob("*") if each.is_file()):
        write_atomically(paths.of(target) / path.relative_to(source), path.read_bytes())


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add `path` to an OSError raised inside: the error of a full disk, for one, has no path."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def write_npz_atomically(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Replace a compressed NumPy archive."""
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def write_json_atomically(path: str | os.PathLike[str], value: Any) -> None:
    """Replace a JSON file, indented.

    Raises:
        ValueError: if `value` holds a NaN or an infinity, which JSON cannot express.
    """
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
