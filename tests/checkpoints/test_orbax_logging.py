"""Damage is told in a sentence, and nothing is printed beside it."""

import logging
import sys
import types

import pytest

from idode_gin.checkpoints import orbax_logging

DETAILS = " [tensorstore_spec='{\\\"context\\\": …}']"
DATABASE = 'Error reading "a/0.0" in OCDBT database at local file "/runs/a/checkpoint_3/ema/"'
PART = 'Error reading Byte range [0, 9) of local file "/runs/a/checkpoint_3/ema/d/85fd"'


def wrapped(error: Exception) -> Exception:
    """As orbax raises it."""
    found = Exception(
        "Encountered error while reading array index: (slice(0, 3, 1),). "
        "See full TensorStore details: <bound method …\n  'base': …>"
    )
    found.__cause__ = error
    return found


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ValueError(f"OUT_OF_RANGE: {DATABASE}: {PART}: Requested range{DETAILS}"),
            "a file is shorter than what was written: d/85fd",
        ),
        (
            wrapped(ValueError(f"DATA_LOSS: {DATABASE}{DETAILS}")),
            "a file does not hold what was written",
        ),
        (ValueError(f"NOT_FOUND: {DATABASE}: {PART}{DETAILS}"), "a file is missing: d/85fd"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (wrapped(RuntimeError("another\nline")), "RuntimeError: another"),
        (RuntimeError("x" * 200), f"RuntimeError: {'x' * 120} …"),
        (RuntimeError("RESOURCE_EXHAUSTED: No space left on device"), "No space left on device"),
    ],
)
def test_a_reason_fits_in_a_sentence(error, words):
    assert orbax_logging.reason(error) == words


def coroutine(file: str):
    found: dict = {}
    exec(compile("async def read(): pass", file, "exec"), found)
    made = found["read"]()
    made.close()
    return made


def test_reads_that_nobody_waits_for_are_not_printed(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda each: printed.append(each.object))
    with pytest.raises(OSError), orbax_logging.silent_stragglers():  # noqa: PT011
        raise OSError
    check_hook(printed)


def test_writes_that_nobody_waits_for_are_not_printed(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda each: printed.append(each.object))
    for _ in range(2):
        orbax_logging.silence_orbax()
    with orbax_logging.silent_stragglers():  # takes nothing away
        pass
    log = logging.getLogger("asyncio")
    message = "Task exception was never retrieved"
    assert not log.filter(log.makeRecord("asyncio", logging.ERROR, "", 0, message, (), None))
    check_hook(printed)


def check_hook(printed):
    others = coroutine("/site-packages/other/reading.py")
    given = [
        (coroutine("/site-packages/orbax/checkpoint/reading.py"), Exception("…")),
        (None, RuntimeError("Event loop is closed")),
        (others, Exception("…")),
        (print, RuntimeError("…")),
    ]
    for thing, error in given:
        sys.unraisablehook(types.SimpleNamespace(object=thing, exc_value=error))  # type: ignore[arg-type]
    assert printed == [others, print]
