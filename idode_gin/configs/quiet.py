"""TensorFlow, which only reads data here, without its greetings.

Its libraries log where they found no GPU before any setting of theirs is read: two copies of
`WARNING: All log messages before absl::InitializeLog() …` and what follows, at every start.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any

_GREETING = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called.*"
    rb"|[IW]\d{4} \d\d:\d\d:[\d.]+ +\d+ \S+\.cc:\d+\] .*"
)
_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def silence_tensorflow() -> None:
    """Lets the first import of TensorFlow drop its own notes; what else is printed then follows it.

    Must come before that import. Whoever sets TF_CPP_MIN_LOG_LEVEL themselves sees everything that
    level lets through.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    is_wanted = os.environ.setdefault(_LEVEL, "3") == "3" and "tensorflow" not in sys.modules
    if is_wanted and not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the loader of `tensorflow`, once."""

    def find_spec(
        self, fullname: str, path: Any, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: filtered(  # type: ignore[method-assign]
                lambda: execute(module)
            )
        return spec


def filtered(call: Callable[[], None]) -> None:
    """Calls, and prints what that wrote to standard error, C code's too, without the greetings."""
    sys.stderr.flush()
    ours = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            call()
        finally:
            sys.stderr.flush()
            os.dup2(ours, 2)
            os.close(ours)
            held.seek(0)
            lines = held.read().splitlines(keepends=True)
            os.write(2, b"".join(each for each in lines if not _GREETING.match(each)))
