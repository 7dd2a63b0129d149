"""Docstrings, which are plain text with Google's sections, to reStructuredText."""

import re
from collections.abc import Iterator

from sphinx.application import Sphinx

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")
_OWN_LINE = re.compile(r"^((?:Refs|Shapes|Units): )", re.MULTILINE)
_ITEM = re.compile(r"\s*(-|\d+\.) ")
_CODE = re.compile(r"(`+[^`]+`+)")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the conversion before napoleon's, which has priority 500."""
    app.connect("autodoc-process-docstring", _convert, priority=400)
    return {"parallel_read_safe": True}


def _convert(app, what, name, obj, options, lines: list[str]) -> None:
    """Keep indented text literal, `code` as code, and every other character as it stands."""
    text = "\n".join(lines).strip("\n")
    text = _OWN_LINE.sub(r"\n\1", text)
    converted: list[str] = []
    in_section = False
    for block in filter(str.strip, re.split(r"\n\s*\n", text)):
        rows = block.splitlines()
        in_section = bool(_SECTION.match(rows[0])) or (in_section and rows[0].startswith(" "))
        converted += [*(_section(rows) if in_section else _paragraph(rows)), ""]
    lines[:] = converted


def _section(rows: list[str]) -> Iterator[str]:
    """Yield entries with their descriptions at one indentation."""
    for row in rows:
        indent = min(len(row) - len(row.lstrip()), 8)
        if indent == 0 and not _SECTION.match(row):
            yield ""
        yield " " * indent + _escaped(row.strip())


def _paragraph(rows: list[str]) -> Iterator[str]:
    """Yield text, a list, or a literal block where lines are indented."""
    is_list = any(map(_ITEM.match, rows))
    if not is_list and any(row.startswith(" ") for row in rows):
        yield from ("::", "", *(f"    {row}" for row in rows))
        return
    before = None
    for row in rows:
        starts_list = before is not None and not _ITEM.match(before) and before[0] != " "
        if starts_list and _ITEM.match(row):
            yield ""
        yield _escaped(row)
        before = row


def _escaped(text: str) -> str:
    """Return `text` without what reStructuredText would take for markup; code in two backticks."""
    parts = _CODE.split(text)
    for place, part in enumerate(parts):
        if place % 2:
            parts[place] = f"``{part.strip('`')}``"
        else:
            marked = re.sub(r"([\\*|])", r"\\\1", part)
            parts[place] = re.sub(r"_(?!\w)", r"\\_", marked)
    return "".join(parts)
