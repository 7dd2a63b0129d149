"""Parts of commands as they are typed: text in quotes for the shell and for gin."""

import re
import shlex

_PLAIN = re.compile(r"[\w./+:@%=,-]+").fullmatch  # needs no quotes in a shell, nor escapes in gin


def bound(macro: str, path: str) -> str:
    """Return the flag that binds a macro to a path."""
    if _PLAIN(path):
        return f"--gin.{macro}=\"'{path}'\""
    return shlex.quote(f"--gin.{macro}={path!r}")
