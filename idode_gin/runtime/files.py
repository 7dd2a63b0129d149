"""Files that are either whole or not there."""

import io
import os
import pathlib
from collections.abc import Mapping

import numpy as np


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Replaces the file at `path`; whoever reads it meanwhile sees the old or the new content."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_npz_atomically(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Replaces a compressed NumPy archive."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())
