"""What orbax and asyncio print beside the errors that they raise: kept out of the log."""

import contextlib
import gc
import logging as python_logging
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from absl import logging


def silence_orbax() -> None:
    """No tracebacks in the log from orbax, which raises the same errors as well."""
    logging.get_absl_logger().addFilter(_is_told_once)


def _is_told_once(record: python_logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in pathlib.Path(record.pathname).parts)


class _StragglerFilter(python_logging.Filter):
    """Drops asyncio's reports of reads that failed after the first one had."""

    def filter(self, record: python_logging.LogRecord) -> bool:
        return "exception was never retrieved" not in record.getMessage()


@contextlib.contextmanager
def silent_stragglers() -> Iterator[None]:
    """One failure to read is raised; of the others, a page for each leaf, nothing is printed.

    Reads that are still under way when the first one fails report to an event loop that is closed.
    """
    log, straggler = python_logging.getLogger("asyncio"), _StragglerFilter()
    hook = sys.unraisablehook

    def unless_closed(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    log.addFilter(straggler)
    sys.unraisablehook = unless_closed
    try:
        yield
    except Exception:
        # Some come even later: the hook and the filter stay, which a program meets once or twice.
        gc.collect()
        raise
    log.removeFilter(straggler)
    sys.unraisablehook = hook


def reason(error: BaseException) -> str:
    """The first line of an error, and of that what fits in a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "No space left on device" in str(error):
        return "No space left on device"
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:120]}{' …' if lines[0][120:] else ''}"
