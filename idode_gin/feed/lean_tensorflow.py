"""Import TensorFlow without packages that only Keras uses, in half the time that they take.

TensorFlow imports Keras, which imports what it finds of plotting, notebooks and scikit-learn for
functions of its own that nobody calls here: a second before the first image is read.
"""

import importlib
import importlib.abc
import sys
import threading
from collections.abc import Collection
from typing import Any

from idode_gin.processes import garbage

OPTIONAL = ("IPython", "matplotlib", "pandas", "sklearn")
"""Packages that Keras imports if they are installed, and does without if they are not."""


def load() -> None:
    """Import TensorFlow; Keras finds none of `OPTIONAL` but those that were imported before.

    Other threads, and whoever imports them later, find them as ever.
    """
    if "tensorflow" in sys.modules:
        return
    hidden = _Hidden([each for each in OPTIONAL if each not in sys.modules])
    sys.meta_path.insert(0, hidden)
    try:
        with garbage.paused():
            importlib.import_module("tensorflow")
    finally:
        sys.meta_path.remove(hidden)


class _Hidden(importlib.abc.MetaPathFinder):
    """Finds no package of these names, in the thread that made it."""

    def __init__(self, names: Collection[str]) -> None:
        self._names, self._thread = frozenset(names), threading.get_ident()

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname in self._names and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
