"""Search the texts of gin files and of our modules for hints; nothing is parsed or imported."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Sequence

_NO_CHOICE = ("runs", "experiments")
_OTHER_PROGRAMS = "gin_configs/t5x/"
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class GinFile:
    """The text of a file; `name` is relative to its search path."""

    name: str
    text: str

    @property
    def is_choice(self) -> bool:
        """True if it is one of a folder of alternatives, to be added to a run."""
        parts = pathlib.PurePath(self.name).parts
        return len(parts) > 2 and parts[1] not in _NO_CHOICE

    @property
    def defines(self) -> str | None:
        """The first macro that it defines as `NAME = @…()`."""
        found = re.search(r"^(\w+) = @", self.text, re.MULTILINE)
        return found and found[1]

    def reads(self, macro: str) -> bool:
        """Return True if it uses `%NAME`."""
        return re.search(rf"%{macro}\b", self.text) is not None

    def builds(self, selector: str) -> bool:
        """Return True if it builds, as `@…()`, the function or class that `selector` ends in."""
        name = re.escape(selector.rpartition(".")[2])
        return re.search(rf"@(?:[\w./]*[./])?{name}\(\)", self.text) is not None


def gin_files(search_paths: Sequence[str | pathlib.Path]) -> list[GinFile]:
    """Return the files of our programs; of one name, the one of the first search path."""
    found: dict[str, GinFile] = {}
    for path in map(pathlib.Path, search_paths):
        for each in sorted(path.glob("gin_configs/**/*.gin")):
            name = each.relative_to(path).as_posix()
            if not name.startswith(_OTHER_PROGRAMS):
                found.setdefault(name, GinFile(name, each.read_text("utf-8", "replace")))
    return list(found.values())


def modules_that_define(selector: str) -> list[str]:
    """Return the modules of idode_gin that define a class or function, without importing them.

    Args:
        selector: its name, with or without the module's: `FixedGrid`, `fixed_grid.FixedGrid`.
    """
    module, _, name = selector.rpartition(".")
    package = pathlib.Path(__file__).parents[1]
    definition = re.compile(rf"^(?:class|def) {re.escape(name)}\b", re.MULTILINE)
    found = [
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in sorted(package.rglob("*.py"))
        if definition.search(path.read_text(encoding="utf-8"))
    ]
    return [each for each in found if each.endswith(f".{module}")] or found


def builders(selector: str, files: Iterable[GinFile]) -> list[str]:
    """Return the names of files that can be added to a run and build `selector`."""
    return [each.name for each in files if each.is_choice and each.builds(selector)]


def flags(names: Iterable[str]) -> str:
    """Return the flags that add one of these files to a command."""
    given = [f"--gin_file={each}" for each in names]
    return " or ".join(given[:_SHOWN]) + (" or …" if given[_SHOWN:] else "")


def none_uses(selector: str, files: Iterable[str]) -> str:
    """Return the message about a class that nothing builds, but `files` would."""
    return f"No gin file uses {selector!r}. Add one that does: {flags(files)}."
