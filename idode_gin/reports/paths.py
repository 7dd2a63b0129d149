"""Paths that users write: `~` is the home folder, and all of them are on this machine."""

import os
import re
from typing import Annotated, TypeAlias

_MARK = "path on this machine"
LocalPath: TypeAlias = Annotated[str, _MARK]
"""Annotation of a parameter whose value in a gin file goes through `local`."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # pathlib makes one slash of two


def local(path: str | os.PathLike[str], name: str) -> str:
    """Return `path` with the home folder in place of `~`.

    Args:
        path: as the user wrote it.
        name: what the message calls it, such as `MODEL_DIR`.

    Raises:
        ValueError: for an address such as gs://bucket/run, or if there is no such home folder.
    """
    text = os.fspath(path)
    if _ADDRESS.match(text):
        raise ValueError(
            f"{name} must be a path on this machine, got {text!r}. Copy its files to a local disk, "
            "or mount it and give the folder where it is mounted."
        )
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        home = text.partition("/")[0]
        raise ValueError(
            f"{name} = {text!r} starts with {home!r}, and there is no such home folder. Set HOME, "
            f"or write the whole path. (A folder of that name is './{home}'.)"
        )
    return expanded


def is_local(annotation: object) -> bool:
    """Return True if an annotation is, or allows, a `LocalPath`."""
    options = (annotation, *getattr(annotation, "__args__", ()))
    return any(_MARK in getattr(each, "__metadata__", ()) for each in options)
