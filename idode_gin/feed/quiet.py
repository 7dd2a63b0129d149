"""Drop the messages that TensorFlow's libraries print when they are imported.

TensorFlow only reads data here, but its libraries log where they found no GPU before they read any
setting: two copies of `WARNING: All log messages before absl::InitializeLog() …` at every start.
"""

import faulthandler
import importlib.abc
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Callable
from typing import Any

_MESSAGE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called.*"
    rb"|[IW]\d{4} \d\d:\d\d:[\d.]+ +\d+ \S+\.cc:\d+\] .*"
)


def silence_tensorflow() -> None:
    """Filter standard error during the first import of TensorFlow; call it before that.

    If TF_CPP_MIN_LOG_LEVEL is set to 0 or 2, nothing is dropped. 1 is what importing jax sets.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    is_wanted = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3") in ("1", "3")
    if is_wanted:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    is_installed = any(isinstance(each, _Finder) for each in sys.meta_path)
    if is_wanted and not is_installed and "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the loader of `tensorflow`, once."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
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
    """Call a function, and print what it wrote to standard error without TensorFlow's messages.

    What C code writes is filtered as well. If it ends the process, as TensorFlow does on a CPU that
    it was not compiled for, Python prints the stack of the import.
    """
    sys.stderr.flush()
    original = os.dup(2)
    if is_crash_silent := not faulthandler.is_enabled():
        faulthandler.enable(original)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            call()
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            if is_crash_silent:
                faulthandler.disable()
            os.close(original)
            held.seek(0)
            lines = held.read().splitlines(keepends=True)
            os.write(2, b"".join(each for each in lines if not _MESSAGE.match(each)))
