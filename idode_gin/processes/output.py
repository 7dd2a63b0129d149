"""Console output of several processes: process 0 prints everything, the others only errors."""

import logging
import os
import sys
import warnings
from typing import Any


def only_errors(index: int) -> None:
    """Print only errors from here on, each line with this process's index in front."""
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # C code prints there as well
    sys.stderr = _Prefixed(sys.stderr, f"process {index}: ")  # type: ignore[assignment]
    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported, before the first bar
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


class _Prefixed:
    """A text stream that begins every line with the same words; otherwise like the given one."""

    def __init__(self, stream: Any, prefix: str) -> None:
        self._stream, self._prefix = stream, prefix
        self._is_line_start = True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self._stream.write(self._prefix + line if self._is_line_start else line)
            self._is_line_start = line.endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
