"""Atomic writes: a file is either complete or absent."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np


def write_atomically(
    path: str | os.PathLike[str], content: str | bytes | Callable[[IO[bytes]], Any]
) -> None:
    """Replace the file at `path`. A concurrent reader sees the old or the new content.

    Args:
        path: path of the file; missing folders are created.
        content: the content, or a function that writes it to an open file.

    Raises:
        OSError: if the write fails, with `path` in the message; the old content is kept.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


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
