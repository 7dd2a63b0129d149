"""Files in a zip, a tar, a tar.gz or a folder, read as streams; nothing is extracted.

`zipfile` and `tarfile` read the archives. This module adds what they leave to the caller:

* Refused are names that lead out of the archive, links, devices, sparse and encrypted files, and
  members that claim more bytes than the reader needs.
* `tarfile` takes a damaged header for the end of the archive; here it is an error.
* `tarfile` keeps every header, 96 MB for 200,000 files; here none is kept, at the same speed.
* `tarfile` reads a header of any length into memory; here 64 kB at most.
* `tarfile` never compares gzip's checksum. It is the last thing in the file, so here a tar.gz is
  read to its end, behind the end mark of the tar.
"""

import contextlib
import dataclasses
import functools
import gzip
import io
import lzma
import os
import pathlib
import posixpath
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, final

from tasks.formats import image_files
from tasks.prepare.refusals import SourceError

_BLOCK = 512  # bytes; the unit of a tar
_PIECE = 1 << 20  # bytes read at one time, whatever a header claims
_LARGEST_HEADERS = 64 << 10  # between two files of a tar
_LARGEST_END = 64 << 20  # behind the end mark; tar pads to whole records, by default of 10 kB
# Raised by the readers of archives: the second row for forged numbers and names in a directory.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, tarfile.TarError, struct.error),
    *(NotImplementedError, gzip.BadGzipFile, ValueError, KeyError, IndexError, OverflowError),
)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """A file in a source.

    Attributes:
        source: the archive or folder.
        name: path inside it, with slashes.
        size: bytes claimed by the archive; `read` checks the claim.
        open: opens a binary stream. In a tar, read it before asking for the next member.
    """

    source: pathlib.Path
    name: str
    size: int
    open: Callable[[], IO[bytes]]

    def __str__(self) -> str:
        return f"{self.name} in {self.source}"

    @property
    def basename(self) -> str:
        """Last part of the name."""
        return posixpath.basename(self.name)

    def read(self) -> bytes:
        """Return the whole content, `size` bytes.

        Raises:
            SourceError: if it is damaged, or not of that size.
        """
        content = io.BytesIO()
        with damage_named(str(self)), self.open() as stream:
            shutil.copyfileobj(stream, content, _PIECE)
        if content.tell() != self.size:
            raise SourceError(
                f"{self} must have {self.size:,} bytes, {content.tell():,} can be read: "
                "the archive is cut short or damaged. Download it again."
            )
        return content.getvalue()

    def in_memory(self) -> "Member":
        """Return the member with its content read, so that it can be opened at any time."""
        return dataclasses.replace(self, open=functools.partial(io.BytesIO, self.read()))


def check_source(path: pathlib.Path) -> None:
    """Raise SourceError unless `path` is a file or folder that may be read."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SourceError(f"--source {path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise SourceError(f"--source {path} must be a file or a folder, and is a device or pipe.")
    if not os.access(path, os.R_OK | (os.X_OK if stat.S_ISDIR(mode) else 0)):
        raise SourceError(
            f"--source {path} cannot be read: no permission. Try `chmod -R u+rX {path}`."
        )


def is_zip(path: pathlib.Path) -> bool:
    """Return whether a source is a file that starts like a zip."""
    return path.is_file() and _head(path).startswith(b"PK")


def iterate(
    path: pathlib.Path, *, largest: int, alone: re.Pattern | None = None
) -> Iterator[Member]:
    """Yield all files of a source: of a tar in its order, of a folder in the order of their names.

    Args:
        path: a zip, tar, tar.gz or folder, recognised by its content.
        largest: bytes; a member that claims more is refused.
        alone: names of files that may come without an archive.

    Raises:
        SourceError: if it is none of these or damaged, or a member is refused.
    """
    check_source(path)
    found: Iterator[Member]
    if path.is_dir():
        found = (_file_member(file, path) for file in _below(path))
    elif alone is not None and alone.fullmatch(path.name):
        found = iter([_file_member(path, path.parent)])
    elif (head := _head(path)).startswith(b"PK"):
        found = _in_zip(path)
    elif head.startswith(b"\x1f\x8b"):
        found = _in_tar(path, gzip.GzipFile(path))
    elif head[257:262] == b"ustar" or path.suffix == ".tar":
        found = _in_tar(path, path.open("rb"))
    else:
        page = " (a web page: the download was refused)" if b"<" in head[:16] else ""
        raise SourceError(
            f"{path} must be a zip, tar or tar.gz file, or a folder. It starts with "
            f"{head[:16]!r}{page}. Download it again."
        )
    with damage_named(str(path)):
        for member in found:
            if member.size > largest:
                way = "download it again"
                if path.is_dir():
                    way = "name the archive, or a folder with its files only, with --source"
                raise SourceError(
                    f"{member} claims {member.size:,} bytes; this dataset needs at most "
                    f"{largest:,}. This is not a file of the published archive: {way}."
                )
            yield member


def add_once(found: dict[str, Member], name: str, member: Member) -> None:
    """Add a member to those found; raise SourceError if there is one of that name."""
    if name in found:
        raise SourceError(
            f"{name} is given twice, as {found[name]} and as {member}. Name one of them with "
            "--source."
        )
    found[name] = member


@contextlib.contextmanager
def damage_named(what: str) -> Iterator[None]:
    """Turn the many errors of a damaged archive into one SourceError that names it."""
    try:
        yield
    except SourceError:
        raise
    except _DAMAGED as error:
        raise SourceError(
            f"{what} is cut short or damaged ({error or type(error).__name__}). Download it again."
        ) from error
    except OSError as error:
        raise SourceError(f"{what} cannot be read: {error.strerror or error}.") from error
    except RuntimeError as error:  # zipfile: "password required"; tarfile: a thousand headers
        raise SourceError(f"{what} cannot be read: {error}.") from error


def safe_name(name: str, source: pathlib.Path) -> str:
    """Return a member's name in its shortest form.

    Raises:
        SourceError: if it leads out of the archive. Nothing is extracted, so it could do no harm,
            but no publisher's archive has such a name.
    """
    odd = name.startswith("/") or "\\" in name or "\0" in name or re.match(r"[A-Za-z]:", name)
    if odd or ".." in name.split("/"):
        raise SourceError(
            f"{source} has a member named {name!r}, which leads out of the archive. This is not "
            "the published archive: download it again."
        )
    return posixpath.normpath(name)


def _below(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return all files below a folder but hidden ones, sorted, see `image_files.files_below`."""
    found, problems = image_files.files_below(folder)
    if problems:
        raise SourceError(problems[0])
    return found


def _head(path: pathlib.Path) -> bytes:
    with damage_named(str(path)), path.open("rb") as file:
        return file.read(_BLOCK)


def _file_member(path: pathlib.Path, folder: pathlib.Path) -> Member:
    return Member(
        source=folder,
        name=path.relative_to(folder).as_posix(),
        size=path.stat().st_size,
        open=functools.partial(path.open, "rb"),  # type: ignore[arg-type]
    )


def _in_zip(path: pathlib.Path) -> Iterator[Member]:
    archive = zipfile.ZipFile(path)
    names = set()
    for info in archive.infolist():
        name = safe_name(info.filename, path)
        if info.is_dir():
            continue
        is_encrypted = info.flag_bits & 1
        if is_encrypted or stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise SourceError(
                f"{name} in {path} is {'encrypted' if is_encrypted else 'a link or device'}. "
                "This is not the published archive: download it again."
            )
        if name in names:
            raise SourceError(f"{path} holds two members named {name}. Download it again.")
        names.add(name)
        opened = functools.partial(archive.open, info)
        yield Member(source=path, name=name, size=info.file_size, open=opened)


def _in_tar(path: pathlib.Path, stream: Any) -> Iterator[Member]:
    limited = _Limited(stream, path)
    with stream, tarfile.open(fileobj=limited, mode="r|", tarinfo=_Header) as archive:  # type: ignore[call-overload]
        while (header := archive.next()) is not None:
            archive.members.clear()
            name = safe_name(header.name, path)
            if header.isdir():
                continue
            is_sparse = any(key.startswith("GNU.sparse") for key in header.pax_headers)
            if is_sparse or header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                raise SourceError(
                    f"{name} in {path} is a link, a device or a sparse file. This is not the "
                    "published archive: download it again."
                )
            limited.allow(header.size, _LARGEST_HEADERS)
            opened = functools.partial(archive.extractfile, header)
            yield Member(source=path, name=name, size=header.size, open=opened)
        limited.allow(0, _LARGEST_END)
        while limited.read(_PIECE):
            pass


class _Header(tarfile.TarInfo):
    """Header of a tar that may not be damaged or missing."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "_Header":
        """Return the header in 512 bytes; raise `tarfile.ReadError` unless it can be read."""
        return cls._read(super().frombuf, buf, encoding, errors)

    @classmethod
    def _frombuf(cls, buf: Any, encoding: str, errors: str, **more: Any) -> "_Header":
        """Return the header as `frombuf` does; Python's reader calls this from 3.12.14 on."""
        read = getattr(super(), "_frombuf")  # noqa: B009  older versions have none
        return cls._read(functools.partial(read, **more), buf, encoding, errors)

    @staticmethod
    def _read(read: Callable[..., Any], buf: Any, encoding: str, errors: str) -> Any:
        try:
            return read(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == _BLOCK and not any(buf):
                raise  # the end mark
            reason = "it lacks the end mark of a tar file" if len(buf) < _BLOCK else error
            raise tarfile.ReadError(str(reason)) from error


class _Limited:
    """A stream that can be read so far and no further."""

    def __init__(self, stream: IO[bytes], path: pathlib.Path) -> None:
        self._stream, self._path = stream, path
        self.allow(0, _LARGEST_HEADERS)

    def allow(self, content: int, more: int) -> None:
        """Allow to read the content of a file and `more` bytes after it."""
        self._left, self._more = content + more, more

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size`; raise SourceError if they are too many."""
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise SourceError(
                f"{self._path} has more than {self._more:,} bytes of headers or padding. "
                "This is not the published archive: download it again."
            )
        return content
