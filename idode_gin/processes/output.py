"""Console output: it never fails, and of several processes only the first prints everything."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from idode_gin import checks

EXIT_BROKEN_PIPE = 141


def make_safe() -> None:
    """Escape characters that an output stream cannot hold, and open those that are closed.

    Call it before anything is opened: a file would get the number of a closed stream, and with it
    what C code prints there.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # The lowest free number, its own.
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def exit_code(main: Callable[[], int]) -> int:
    """Return the exit code of a small program, also if it is interrupted or nobody reads it."""
    try:
        code = main()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        drop()
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        complain("stopped: interrupted.")
        return checks.EXIT_PREEMPTED


def drop() -> None:
    """Drop what is printed from here on: the reader, such as `head`, has closed the output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str) -> None:
    """Print to stderr, if anybody reads it: what is done afterwards must be done in any case."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


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
