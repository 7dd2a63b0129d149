"""What the gin files of a `gin_configs` folder speak of, for hints: nothing is parsed or bound."""

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_NO_CHOICE = ("runs", "experiments")
_SHOWN = 3


class Reader(NamedTuple):
    """A file that reads a macro, as in `x = %NAME`, and the first macro it defines by `@…()`."""

    name: str
    defines: str | None

    @property
    def is_choice(self) -> bool:
        """Whether it can be added to a run, as one file of a folder of alternatives."""
        return _is_choice(self.name)


def macro_readers(search_paths: Sequence[str]) -> dict[str, list[Reader]]:
    """Every `NAME` that some file below a `gin_configs` of the search paths uses as `%NAME`."""
    found: dict[str, list[Reader]] = {}
    for name, text in _texts(search_paths).items():
        defined = re.search(r"^(\w+) = @", text, re.MULTILINE)
        reader = Reader(name, defined[1] if defined else None)
        for macro in sorted(set(re.findall(r"%(\w+)", text))):
            found.setdefault(macro, []).append(reader)
    return found


def builders(selector: str, search_paths: Sequence[str]) -> list[str]:
    """Files that can be added to a run and build, as `@…()`, what `selector` ends in."""
    used = re.compile(rf"@(?:[\w./]*[./])?{re.escape(selector.rpartition('.')[2])}\(\)")
    texts = _texts(search_paths)
    return [name for name, text in texts.items() if _is_choice(name) and used.search(text)]


def flags(names: Iterable[str]) -> str:
    """What to add to a command to have one of these files."""
    given = [f"--gin_file={each}" for each in names]
    return " or ".join(given[:_SHOWN]) + (" or …" if given[_SHOWN:] else "")


def none_uses(selector: str, files: Iterable[str]) -> str:
    """What is said of a class that nothing builds, where `files` would."""
    return f"No gin file uses {selector!r}. Add one that does: {flags(files)}."


def _is_choice(name: str) -> bool:
    parts = pathlib.PurePath(name).parts
    return len(parts) > 2 and parts[1] not in _NO_CHOICE


def _texts(search_paths: Sequence[str]) -> Mapping[str, str]:
    """Texts by name below the first search path that has the file."""
    found: dict[str, str] = {}
    for path in map(pathlib.Path, search_paths):
        for each in sorted(path.glob("gin_configs/**/*.gin")):
            found.setdefault(each.relative_to(path).as_posix(), each.read_text("utf-8"))
    return found
