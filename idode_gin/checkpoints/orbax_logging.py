"""Keep what orbax and asyncio print, beside the errors they raise, out of the log."""

import contextlib
import gc
import logging as python_logging
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from idode_gin.reports import paths


def silence_orbax() -> None:
    """Drop tracebacks that orbax logs, and the reports of other writes when one fails.

    orbax raises the same errors, for the writes that it waits for.
    """
    logging.get_absl_logger().addFilter(_is_wanted)
    python_logging.getLogger("asyncio").addFilter(_is_no_straggler)
    if not isinstance(sys.unraisablehook, _UnlessStraggler):
        sys.unraisablehook = _UnlessStraggler(sys.unraisablehook)


def _is_wanted(record: python_logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in pathlib.Path(record.pathname).parts)


def _is_no_straggler(record: python_logging.LogRecord) -> bool:
    """Return False for asyncio's reports of reads that failed after the first one."""
    return "exception was never retrieved" not in record.getMessage()


class _UnlessStraggler:
    """A `sys.unraisablehook` that passes on what does not come from reads and writes given up."""

    def __init__(self, hook: Callable[[Any], object]) -> None:
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        is_closed = "Event loop is closed" in str(unraisable.exc_value)
        if not is_closed and not _is_of_orbax(unraisable.object):
            self._hook(unraisable)


@contextlib.contextmanager
def silent_stragglers() -> Iterator[None]:
    """Suppress the reports of other reads when one fails and raises.

    Reads still pending when the first one fails report to a closed event loop: a page per leaf.
    """
    log, hook = python_logging.getLogger("asyncio"), sys.unraisablehook
    is_new = _is_no_straggler not in log.filters
    log.addFilter(_is_no_straggler)
    sys.unraisablehook = _UnlessStraggler(hook)
    try:
        yield
    except Exception:
        # Some reports come even later, so the hook and the filter stay installed.
        gc.collect()
        raise
    if is_new:
        log.removeFilter(_is_no_straggler)
    sys.unraisablehook = hook


def _is_of_orbax(thing: Any) -> bool:
    """Return True for a coroutine of orbax, that is a read that is no longer awaited."""
    code = getattr(thing, "cr_code", None)
    return code is not None and "orbax" in pathlib.Path(code.co_filename).parts


_KINDS = {
    "OUT_OF_RANGE": "a file is shorter than what was written",
    "DATA_LOSS": "a file does not hold what was written",
    "NOT_FOUND": "a file is missing",
    "FAILED_PRECONDITION": "a file is missing or does not hold what was written",
    "PERMISSION_DENIED": "a file may not be read",
}
"""Meaning, for files, of the error codes of tensorstore."""
_FILE = re.compile(r'local file "([^"]*[^"/])"')
_DETAILS = re.compile(r" \[tensorstore_spec=| See full TensorStore details")


def reason(error: BaseException) -> str:
    """Describe an error in words that fit in a sentence, without its internal details."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, paths.StoreError):
        return str(error).removesuffix(".")
    if "No space left on device" in str(error):
        return "No space left on device"
    first, *details = _DETAILS.split(str(error), maxsplit=1)
    kind = first.partition(":")[0]
    if kind in _KINDS:
        files = [pathlib.Path(each) for each in _FILE.findall(first)]
        return _KINDS[kind] + (f": {files[-1].parent.name}/{files[-1].name}" if files else "")
    if details and error.__cause__ is not None:
        return reason(error.__cause__)
    line = (first.splitlines() or [""])[0]
    return f"{type(error).__name__}: {line[:120]}{' …' if line[120:] else ''}"
