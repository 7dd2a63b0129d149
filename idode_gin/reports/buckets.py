"""Folders in a bucket of Google Cloud Storage, with the methods of pathlib.

A bucket has no folders: a "folder" is the common start of names, is there once an object is, and is
neither made nor renamed. An object is written in one request, and readers see the old or the new
one. `etils.epath` parses the addresses (orbax uses it, too), `gcsfs` speaks to the store. What they
lack here: answers that distinguish "it is not there" from "the store does not answer", without
which an outage would be taken for an empty run directory; and listings that are never cached.

The libraries retry what may succeed (connections that break, 408, 429, 5xx) six times, with growing
pauses. What then fails is a `paths.StoreError`.
"""

import contextlib
import functools
import importlib.util
import logging
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from idode_gin.reports import paths

os.environ.setdefault("EPATH_USE_TF", "false")  # TensorFlow has no Google Cloud Storage built in
from etils.epath import backend, gpath  # noqa: E402

_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$")
_MISREAD = re.compile(r"[\x00-\x1f\x7f?#*\[\]{}%\\]")
_REFUSED = (401, "401", 403, "403")
_INSTALL = "pip install gcsfs"
ANSWER = 40.0
"""Seconds that one of the six tries of gcsfs waits for an answer."""


def checked(address: str, name: str) -> str:
    """Return the address of a folder in a bucket, without empty parts.

    Args:
        address: as the user wrote it.
        name: what the message calls it, such as `MODEL_DIR`.

    Raises:
        ValueError: if it is no such address, or the libraries are not installed.
    """
    bucket, *parts = [each for each in address.removeprefix(paths.BUCKET).split("/") if each] or [
        ""
    ]
    if not _BUCKET.match(f"{paths.BUCKET}{bucket}") or not parts:
        raise ValueError(
            f"{name} must be a folder in a bucket, gs://bucket/folder, got {address!r}. A bucket's "
            "name has 3 or more lower-case letters, digits, '-', '_' and '.'."
        )
    if (found := _MISREAD.search(address)) or {".", ".."} & set(parts):
        raise ValueError(
            f"{name} must be an address without . or .. as a folder, and without ? # * % \\ and "
            f"brackets, which are read as patterns or marks, got {address!r}"
            + (f" with {found[0]!r}." if found else ".")
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(
            f"{name} = {address!r} needs the package gcsfs, which is not installed. Run {_INSTALL}."
        )
    return f"{paths.BUCKET}{'/'.join([bucket, *parts])}"


@functools.cache
def _prepare() -> None:
    """Let every look at a bucket see what others have written, and wait for no answer for ever.

    That goes for orbax's instances, too. The time for an answer begins when the request is sent, so
    that it limits no upload. gcsfs logs tracebacks of the errors that it raises; they are left out.
    """
    import aiohttp
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    limits = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER, sock_read=ANSWER)
    for protocol in ("gs", "gcs"):
        settings = fsspec.config.conf.setdefault(protocol, {})
        settings.setdefault("use_listings_cache", False)
        settings.setdefault("requests_timeout", limits)


def filesystem() -> Any:
    """Return the file system of fsspec."""
    _prepare()
    import fsspec

    return fsspec.filesystem("gcs")


@contextlib.contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of the libraries into a `StoreError` that names the path.

    Those that mean "there is no such object" stay as they are.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError):
        raise
    except paths.StoreError:
        raise
    except Exception as error:  # of aiohttp, gcsfs, google.auth, google.api_core, …
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if _is_refusal(error):
            raise paths.StoreError(
                f"{os.fspath(path)} was refused to {identity()}: {reason} Give that identity "
                "access to the bucket, or name another in GOOGLE_APPLICATION_CREDENTIALS."
            ) from error
        reason = reason.rstrip(".")
        raise paths.StoreError(f"{os.fspath(path)} cannot be reached: {reason}.") from error


def _is_refusal(error: Exception) -> bool:
    is_forbidden = str(error).startswith("Forbidden: ") or getattr(error, "code", None) in _REFUSED
    return is_forbidden or type(error).__module__.startswith("google.auth")


def identity() -> str:
    """Return in whose name the store is asked, as far as the libraries say."""
    with contextlib.suppress(Exception):  # google.auth's errors are of many types
        found = filesystem().credentials.credentials
        if found is None:
            return "an anonymous user (no credentials were found)"
        for name in ("service_account_email", "signer_email", "account"):
            if email := getattr(found, name, None):
                return str(email)
    file = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    return f"the identity of {file}" if file else "the default identity of this machine"


class _Backend:
    """epath's backend for fsspec, whose errors are `explained`."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(backend.fsspec_backend, name)

        @functools.wraps(method)
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            with explained(path):
                return method(path, *args, **kwargs)

        return call


class BucketPath(gpath.PosixGPath, pathlib.PosixPath):  # type: ignore[misc]
    """A path in a bucket. Methods are pathlib's, but that folders are neither made nor renamed.

    It is one of pathlib's paths for annotations alone: the methods are epath's and those below.
    """

    @property
    def _backend(self) -> Any:
        _prepare()
        return _Backend()

    def _info(self) -> dict[str, Any] | None:
        """Return fsspec's description, None if there is nothing at the path."""
        with explained(self), contextlib.suppress(FileNotFoundError):
            return dict(filesystem().info(os.fspath(self)))
        return None

    def exists(self) -> bool:
        """Return True if there is an object, or one below it."""
        return self._info() is not None

    def is_dir(self) -> bool:
        """Return True if there are objects below the path."""
        return (self._info() or {}).get("type") == "directory"

    def is_file(self) -> bool:
        """Return True if there is an object."""
        return (self._info() or {}).get("type") == "file"

    def is_symlink(self) -> bool:
        """Return False: buckets have none."""
        return False

    def absolute(self) -> "BucketPath":
        """Return the path, which is absolute."""
        return self

    def resolve(self, strict: bool = False) -> "BucketPath":
        """Return the path, which holds no links."""
        return self

    def expanduser(self) -> "BucketPath":
        """Return the path, which has no home folder."""
        return self

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder is there once an object in it is."""

    def read_bytes(self) -> bytes:
        """Return the content of an object."""
        with explained(self):
            return bytes(filesystem().cat_file(os.fspath(self)))

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Return the content of an object as text, UTF-8 unless `encoding` is given."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:
        """Write an object in one request; readers see the old content or the new."""
        with explained(self), self._bucket_there():
            filesystem().pipe_file(os.fspath(self), data)
        return len(data)

    def stamp(self) -> tuple[int, str]:
        """Return the number of objects below the path and the time of the last change."""
        with explained(self):
            found = filesystem().find(os.fspath(self), detail=True).values()
        return len(found), max((str(each.get("updated")) for each in found), default="")

    def move_to(self, target: "BucketPath", first: str) -> None:
        """Copy all objects to another folder, then delete them here, the object `first` first.

        Whoever takes a folder for complete when it holds `first` never takes half of one.
        """
        with explained(self):
            store = filesystem()
            store.copy(os.fspath(self), os.fspath(target), recursive=True)
        self.delete(first)

    def delete(self, first: str) -> None:
        """Delete all objects below the path, the object `first` before the others."""
        (self / first).unlink(missing_ok=True)
        self.rmtree(missing_ok=True)

    def read_version(self) -> tuple[str, bytes] | None:
        """Return the generation and the content of an object, None without one."""
        while (found := self._info()) is not None and found["type"] == "file":
            with contextlib.suppress(FileNotFoundError):
                content = self.read_bytes()
                if (self._info() or {}).get("generation") == found["generation"]:
                    return str(found["generation"]), content
        return None

    def write_version(self, data: bytes, expected: str) -> str:
        """Write an object if its generation is `expected`, "0" for none; return the new one.

        Raises:
            FileExistsError: if it is another. A repeated request may meet what it wrote itself.
        """
        bucket, key = self._bucket_and_key()
        with explained(self), self._bucket_there():
            store = filesystem()
            found = store.call(
                "POST",
                store.base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o",
                bucket,
                uploadType="media",
                name=key,
                ifGenerationMatch=expected,
                data=data,
                headers={"Content-Type": "application/octet-stream"},
                json_out=True,
            )
        return str(found["generation"])

    def delete_version(self, expected: str) -> None:
        """Delete an object if its generation is `expected`.

        Raises:
            FileExistsError, FileNotFoundError: if it is another, or there is no object.
        """
        bucket, key = self._bucket_and_key()
        with explained(self):
            filesystem().call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=expected)

    @contextlib.contextmanager
    def _bucket_there(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            bucket, _ = self._bucket_and_key()
            raise paths.StoreError(
                f"{self} cannot be written: there is no bucket {bucket!r}, or {identity()} may not "
                "see it. Make the bucket first; this program makes none."
            ) from error

    def _bucket_and_key(self) -> tuple[str, str]:
        bucket, _, key = os.fspath(self).removeprefix(paths.BUCKET).partition("/")
        return bucket, key
