"""The package `tasks` of this project, found beside `idode_gin` whatever else has its name.

Python looks for modules in the current folder first, where a user may have a `tasks.py` of another
tool.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import sys
from types import ModuleType
from typing import Any

NAME = "tasks"
FOLDER = pathlib.Path(__file__).resolve().parents[2] / NAME


class _Finder(importlib.abc.MetaPathFinder):
    """Finds `tasks` alone; its modules are then found in its folder."""

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != NAME:
            return None
        return importlib.util.spec_from_file_location(
            NAME, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )


def reserve() -> None:
    """Make `import tasks` find this project's package from here on.

    Raises:
        ValueError: if another module of that name was imported before.
    """
    if not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    found = getattr(sys.modules.get(NAME), "__file__", None)
    if NAME in sys.modules and not _is_ours(found):
        raise ValueError(
            f"The module {NAME!r} must be this project's, {FOLDER}, but another one was imported "
            f"before: {found}. Rename that one."
        )


def namesake() -> str | None:
    """Return the file of another module `tasks` on Python's path, which is not imported."""
    for folder in sys.path:
        spec = importlib.machinery.PathFinder.find_spec(NAME, [folder])
        if spec is not None and spec.origin is not None and not _is_ours(spec.origin):
            return spec.origin
    return None


def _is_ours(file: str | None) -> bool:
    return file is not None and pathlib.Path(file).resolve().parent == FOLDER
