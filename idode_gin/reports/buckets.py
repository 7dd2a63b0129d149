"""Folders in a bucket, with the methods of pathlib.

A bucket has no folders: a "folder" is the common start of names, is there once an object is, and is
neither made nor renamed. An object is written at once: readers see the old or the new one.
`etils.epath` parses the addresses (orbax uses it, too), and a file system of fsspec speaks to the
store. What they lack here: answers that distinguish "it is not there" from "the store does not
answer", without which an outage would be taken for an empty run directory; and listings that are
never cached.

The libraries retry what may succeed (connections that break, 408, 429, 5xx), with growing pauses.
What then fails is a `paths.StoreError`.
"""

import contextlib
import functools
import importlib.util
import os
import pathlib
import re
from collections.abc import Generator, Iterator, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from idode_gin.reports import google_storage, paths, s3

os.environ.setdefault("EPATH_USE_TF", "false")  # TensorFlow has no Google Cloud Storage built in
from etils.epath import backend, gpath  # noqa: E402

_MISREAD = re.compile(r"[\x00-\x1f\x7f?#*\[\]{}%\\]")


@runtime_checkable
class Store(Protocol):
    """Operations that differ between bucket services. Versions are strings of the service."""

    package: str
    """Name of the package with its file system."""
    extra: str
    """Extra of this package that installs it, with what else the store needs."""
    bucket: str
    """Regular expression of a bucket's name."""
    rule: str
    """The same in words."""
    way_out: str
    """How a user names another identity."""
    one_by_one: ClassVar[dict[str, Any]]
    """Arguments of `get` with which a large object is read in order, which is tried again."""

    def filesystem(self) -> Any:
        """Return the file system of fsspec: with no cached listing, and no endless wait."""

    def identity(self) -> str:
        """Return the identity that sends the requests, as far as the libraries report it."""

    def is_refusal(self, error: Exception) -> bool:
        """Return True if the error says that this identity may not do what it asked for."""

    def version(self, info: dict[str, Any]) -> str:
        """Return the version of an object that fsspec describes."""

    def changed(self, info: dict[str, Any]) -> str:
        """Return the time of its last change."""

    def write(self, bucket: str, key: str, data: bytes, expected: str) -> str:
        """Write an object if its version is `expected`, `NO_VERSION` for none; return the new one.

        Raises:
            FileExistsError: if it is another.
        """

    def delete(self, bucket: str, key: str, expected: str) -> None:
        """Delete an object if its version is `expected`.

        Raises:
            FileExistsError, FileNotFoundError: if it is another, or there is no object.
        """


NO_VERSION = "0"
"""Version of an object that does not exist."""
_STORES: dict[str, Store] = {"gs://": google_storage.GoogleStorage(), "s3://": s3.S3()}


def store_of(path: str | os.PathLike[str]) -> Store:
    """Return the service that holds an address."""
    return _STORES[os.fspath(path)[:5]]


def filesystem(path: str | os.PathLike[str]) -> Any:
    """Return the file system of fsspec for an address."""
    return store_of(path).filesystem()


def checked(address: str, name: str) -> str:
    """Return the address of a folder in a bucket, without empty parts.

    Args:
        address: as the user wrote it.
        name: what the message calls it, such as `MODEL_DIR`.

    Raises:
        ValueError: if it is no such address, or the libraries are not installed.
    """
    store, scheme = store_of(address), address[:5]
    bucket, *parts = [each for each in address[5:].split("/") if each] or [""]
    if not (is_name := re.fullmatch(store.bucket, bucket)) or not parts:
        rule = "" if is_name else f" A bucket's name has {store.rule}."
        raise ValueError(
            f"{name} must be a folder in a bucket, {scheme}bucket/folder, got {address!r}.{rule}"
        )
    if (found := _MISREAD.search(address)) or {".", ".."} & set(parts):
        raise ValueError(
            f"{name} must be an address without . or .. as a folder, and without ? # * % \\ and "
            f"brackets, which are read as patterns or marks, got {address!r}"
            + (f" with {found[0]!r}." if found else ".")
        )
    if importlib.util.find_spec(store.package) is None:
        raise ValueError(
            f"{name} = {address!r} needs the package {store.package}, which is not installed. Run "
            f"pip install -e '.[{store.extra}]' in the clone."
        )
    return f"{scheme}{'/'.join([bucket, *parts])}"


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
    except Exception as error:  # of aiohttp, gcsfs, google.auth, s3fs, botocore, …
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        store = store_of(path)
        if store.is_refusal(error):
            raise paths.StoreError(
                f"{os.fspath(path)} was refused to {store.identity()}: {reason}. Give that "
                f"identity access to the bucket, or name another {store.way_out}."
            ) from error
        raise paths.StoreError(f"{os.fspath(path)} cannot be reached: {reason}.") from error


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
        filesystem(self)  # its settings hold for the instances that epath makes
        return _Backend()

    def _info(self) -> dict[str, Any] | None:
        """Return fsspec's description, None if there is nothing at the path."""
        with explained(self), contextlib.suppress(FileNotFoundError):
            return dict(filesystem(self).info(os.fspath(self)))
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

    def iterdir(self) -> Generator["BucketPath", None, None]:
        """Yield what is directly below the path, without the mark that some tools make for it."""
        with explained(self):
            names = filesystem(self).ls(os.fspath(self), detail=False)
        for name in (each.rstrip("/") for each in names):
            if name != os.fspath(self)[5:]:
                yield self / name.rpartition("/")[2]

    def is_symlink(self) -> bool:
        """Return False: buckets have none."""
        return False

    def resolve(self, strict: bool = False) -> "BucketPath":
        """Return the path, which holds no links."""
        return self

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder is there once an object in it is."""

    def read_bytes(self) -> bytes:
        """Return the content of an object."""
        with explained(self):
            return bytes(filesystem(self).cat_file(os.fspath(self)))

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Return the content of an object as text, UTF-8 unless `encoding` is given."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:
        """Write an object in one request; readers see the old content or the new."""
        with explained(self), self._bucket_there():
            filesystem(self).pipe_file(os.fspath(self), data)
        return len(data)

    def objects(self) -> dict[str, tuple[int, str]]:
        """Return size and version of the objects below the path, by the rest of their name.

        Of an object itself, that rest is "."; without objects, there is none.

        Raises:
            ValueError: if an object's name is not that of a file below a folder, as `a//b`, `a/..`.
        """
        found: dict[str, dict[str, Any]] = {}
        with explained(self), contextlib.suppress(FileNotFoundError):
            found = filesystem(self).find(os.fspath(self), detail=True)
        root, version, sizes = os.fspath(self)[5:], store_of(self).version, {}
        for name, each in found.items():
            rest = "." if name == root else name.removeprefix(f"{root}/")
            if rest.endswith("/"):  # the mark of an empty folder
                continue
            if rest != "." and {"", ".", ".."} & set(rest.split("/")):
                raise ValueError(f"The object {name!r} has no place in a folder. Rename it.")
            sizes[rest] = int(each["size"]), version(each)
        return sizes

    def download(self, targets: Mapping[str, pathlib.Path]) -> None:
        """Write the content of objects, by the rest of their name, to files on this machine.

        Raises:
            FileNotFoundError: if one is not there any more.
        """
        for path in targets.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        root = os.fspath(self)[5:]
        names = [root if name == "." else f"{root}/{name}" for name in targets]
        partial = [path.with_name(f".{path.name}.partial") for path in targets.values()]
        with explained(self):
            filesystem(self).get(names, list(map(str, partial)), **store_of(self).one_by_one)
        for here, path in zip(partial, targets.values(), strict=True):
            here.replace(path)

    def stamp(self) -> tuple[int, str]:
        """Return the number of objects below the path and the time of the last change."""
        with explained(self):
            found = filesystem(self).find(os.fspath(self), detail=True).values()
        times = map(store_of(self).changed, found)
        return len(found), max(times, default="")

    def move_to(self, target: "BucketPath", *first: str) -> None:
        """Copy all objects to another folder, then delete them here as `delete` does."""
        with explained(self):
            store = filesystem(self)
            store.copy(os.fspath(self), os.fspath(target), recursive=True)
        self.delete(*first)

    def delete(self, *first: str) -> None:
        """Delete all objects below the path, those of the names `first` before the others.

        A folder that is complete while it holds one of them is then never partly deleted and
        complete.
        """
        for name in first:
            (self / name).unlink(missing_ok=True)
        self.rmtree(missing_ok=True)

    def read_version(self) -> tuple[str, bytes] | None:
        """Return the version and the content of an object, None without one."""
        version = store_of(self).version
        while (found := self._info()) is not None and found["type"] == "file":
            with contextlib.suppress(FileNotFoundError):
                content, after = self.read_bytes(), self._info()
                if after is not None and version(after) == version(found):
                    return version(found), content
        return None

    def write_version(self, data: bytes, expected: str) -> str:
        """Write an object if its version is `expected`, `NO_VERSION` for none; return the new one.

        Raises:
            FileExistsError: if it is another. A repeated request may meet what it wrote itself.
        """
        with explained(self), self._bucket_there():
            return store_of(self).write(*self._bucket_and_key(), data, expected)

    def delete_version(self, expected: str) -> None:
        """Delete an object if its version is `expected`.

        Raises:
            FileExistsError, FileNotFoundError: if it is another, or there is no object.
        """
        with explained(self):
            store_of(self).delete(*self._bucket_and_key(), expected)

    @contextlib.contextmanager
    def _bucket_there(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            bucket, _ = self._bucket_and_key()
            raise paths.StoreError(
                f"{self} cannot be written: there is no bucket {bucket!r}, or "
                f"{store_of(self).identity()} may not see it. Make the bucket first; this program "
                "makes none."
            ) from error

    def _bucket_and_key(self) -> tuple[str, str]:
        bucket, _, key = os.fspath(self)[5:].partition("/")
        return bucket, key
