"""Paths that users write: on this machine, where `~` is the home folder, or in a bucket."""

import os
import pathlib
import re
from collections.abc import Callable
from typing import Annotated, TypeAlias

_LOCAL, _STORED = "path on this machine", "path on this machine or in a bucket"
LocalPath: TypeAlias = Annotated[str, _LOCAL]
"""Annotation of a parameter whose value in a gin file goes through `local`."""
StoredPath: TypeAlias = Annotated[str, _STORED]
"""Annotation of a parameter whose value in a gin file goes through `stored`."""
BUCKETS = ("gs://", "s3://")
"""How addresses in buckets begin."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # pathlib makes one slash of two


class StoreError(OSError):
    """A bucket could not be read or written: network, credentials, permissions."""


def local(path: str | os.PathLike[str], name: str) -> str:
    """Return `path` with the home folder in place of `~`.

    Args:
        path: as the user wrote it.
        name: what the message calls it, such as `DATA_PATH`.

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


def stored(path: str | os.PathLike[str], name: str) -> str:
    """Return a path as `local` does; gs:// and s3://bucket/folder are accepted as well.

    Raises:
        ValueError: as `local` for other addresses; for an empty text; for a bucket's address that
            is incomplete or has characters that its libraries misread; or if these are not
            installed.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{name} must be text or a pathlib.Path, got {path!r}.")
    text = os.fspath(path)
    if not text:  # pathlib would take it for the current folder
        raise ValueError(
            f"{name} must be a path, got an empty text. Was a variable of the shell not set? The "
            "current folder is '.'."
        )
    if in_bucket(text):
        from idode_gin.reports import buckets

        return buckets.checked(text, name)
    if _ADDRESS.match(text):
        scheme, _, rest = text.partition(":")
        near = f"{scheme.lower()}://{rest.lstrip('/')}"
        way_out = "mount the other storage and give the folder where it is mounted."
        raise ValueError(
            f"{name} must be a path on this machine or in a bucket (gs://bucket/folder or "
            f"s3://bucket/folder), got {text!r}. "
            + (f"Did you mean {near!r}?" if in_bucket(near) else f"Give such a path, or {way_out}")
        )
    return local(text, name)


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Return True for the address of a bucket."""
    return os.fspath(path).startswith(BUCKETS)


def of(path: str | os.PathLike[str]) -> pathlib.Path:
    """Return the path on this machine, or a `buckets.BucketPath`."""
    text = os.fspath(path)
    if not in_bucket(text):
        return pathlib.Path(text)
    from idode_gin.reports import buckets

    return buckets.BucketPath(text)


def reader(annotation: object) -> Callable[[str, str], str] | None:
    """Return `local` or `stored` for an annotation that is, or allows, such a path; else None."""
    options = (annotation, *getattr(annotation, "__args__", ()))
    marks = [mark for each in options for mark in getattr(each, "__metadata__", ())]
    if _STORED in marks:
        return stored
    return local if _LOCAL in marks else None
