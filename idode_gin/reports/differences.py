"""Settings as gin writes them, and sentences about those that changed."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "nothing"
"""Shown in place of the value of a setting that one side lacks."""


def bindings(operative: str) -> dict[str, str]:
    """Return macros and parameters of the text of an operative configuration, as gin writes them.

    Long values are joined to one line.
    """
    text = re.sub(r"( \\)?\n +", " ", operative)
    pairs = (line.split(" = ", 1) for line in text.splitlines() if " = " in line)
    return {name: value for name, value in pairs if not name.startswith("#")}


def changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return "NAME was OLD and is now NEW" for every setting that changed, sorted by name.

    Of a SHA-256 the first characters are shown.
    """
    names = sorted(saved.keys() | current.keys())
    pairs = [(name, saved.get(name, ABSENT), current.get(name, ABSENT)) for name in names]
    return [
        f"{name} was {_shortened(old)} and is now {_shortened(new)}"
        for name, old, new in pairs
        if old != new
    ]


def _shortened(value: Any) -> Any:
    is_digest = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return f"{value[:12]}…" if is_digest else value


def listed(sentences: Sequence[str], most: int = 5) -> str:
    """Join the first `most` sentences, followed by the number of the others."""
    others = len(sentences) - most
    return "; ".join([*sentences[:most], *([f"and {others} more"] if others > 0 else [])])
