"""The files inside a zip, a tar, a tar.gz or a folder, read as streams; nothing is extracted.

An archive is refused for a member with an absolute path or `..`, a link, a device, a sparse or an
encrypted file, and for one that claims to be larger than the reader has any use for.
"""

import contextlib
import dataclasses
import functools
import gzip
import lzma
import os
import pathlib
import posixpath
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, final

from tasks.prepare.refusals import SourceError

_BLOCK = 512
_LARGEST_EXTENSION = 1 << 20
_LARGEST_END = 64 << 20  # tar fills up to whole records, of 10 kB unless told otherwise
# What the readers of archives raise: the second row for forged numbers and names in a directory.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, tarfile.HeaderError, struct.error),
    *(NotImplementedError, gzip.BadGzipFile, ValueError, KeyError, IndexError, OverflowError),
)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """A file in a source.

    Attributes:
        source: the archive or folder.
        name: path inside it, with slashes.
        size: bytes, as the archive claims; `read` holds it to that.
        open: a binary stream. In a tar, to be read before the next member is asked for.
    """

    source: pathlib.Path
    name: str
    size: int
    open: Callable[[], IO[bytes]]

    def __str__(self) -> str:
        return f"{self.name} in {self.source}"

    @property
    def basename(self) -> str:
        """The last part of the name."""
        return posixpath.basename(self.name)

    def read(self) -> bytes:
        """The whole content, `size` bytes."""
        with damage_named(str(self)), contextlib.closing(self.open()) as stream:
            content = stream.read(self.size + 1)
        if len(content) != self.size:
            raise SourceError(
                f"{self} must have {self.size:,} bytes, {len(content):,} can be read: "
                "the archive is cut short or damaged. Download it again."
            )
        return content


def check_source(path: pathlib.Path) -> None:
    """Raises SourceError unless there is a file or folder that may be read."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SourceError(f"--source {path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise SourceError(f"--source {path} must be a file or a folder, and is a device or pipe.")
    needed = os.R_OK | (os.X_OK if stat.S_ISDIR(mode) else 0)
    if not os.access(path, needed):
        raise SourceError(
            f"--source {path} cannot be read: no permission. Try `chmod -R u+rX {path}`."
        )


def is_zip(path: pathlib.Path) -> bool:
    """Whether a source is a file that starts like a zip."""
    return path.is_file() and _head(path).startswith(b"PK")


def iterate(path: pathlib.Path, *, largest: int) -> Iterator[Member]:
    """All files of a source, those of a tar in its order; of a folder, in the order of their names.

    Args:
        path: a zip, tar, tar.gz or folder; which one is seen from the content.
        largest: bytes; a member that claims more is refused.

    Raises:
        SourceError: for anything else, and for a member that is refused.
    """
    check_source(path)
    if path.is_dir():
        found = _in_folder(path)
    else:
        head = _head(path)
        if head.startswith(b"PK"):
            found = _in_zip(path)
        elif head.startswith(b"\x1f\x8b"):
            found = _in_tar(path, functools.partial(gzip.GzipFile, path, "rb"))  # type: ignore[arg-type]
        elif head[257:262] == b"ustar" or path.suffix == ".tar":
            found = _in_tar(path, functools.partial(path.open, "rb"))  # type: ignore[arg-type]
        else:
            page = " (a web page: the download was refused)" if b"<" in head[:16] else ""
            raise SourceError(
                f"{path} must be a zip, tar or tar.gz file, or a folder. It starts with "
                f"{head[:16]!r}{page}. Download it again."
            )
    with damage_named(str(path)):
        for member in found:
            yield checked(member, largest)


def checked(member: Member, largest: int) -> Member:
    """The member; raises SourceError if it claims more than `largest` bytes."""
    if member.size > largest:
        raise SourceError(
            f"{member} claims {member.size:,} bytes; {largest:,} are more than this "
            "dataset needs. This is not the published archive: download it again."
        )
    return member


def file_member(path: pathlib.Path, name: str | None = None) -> Member:
    """A file on disk."""
    return Member(
        source=path.parent,
        name=name or path.name,
        size=path.stat().st_size,
        open=functools.partial(path.open, "rb"),  # type: ignore[arg-type]
    )


@contextlib.contextmanager
def damage_named(what: str) -> Iterator[None]:
    """Turns the many errors of a damaged archive into one SourceError that names it."""
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
    except RuntimeError as error:  # zipfile: "password required"
        raise SourceError(f"{what} cannot be read: {error}.") from error


def safe_name(name: str, source: pathlib.Path) -> str:
    """A member's name in its shortest form.

    Raises:
        SourceError: if it leads out of the archive. Nothing is ever extracted, so it could do no
            harm, but no publisher's archive has such a name.
    """
    odd = name.startswith("/") or "\\" in name or "\0" in name or re.match(r"[A-Za-z]:", name)
    if odd or ".." in name.split("/"):
        raise SourceError(
            f"{source} has a member named {name!r}, which leads out of the archive. This is not "
            "the published archive: download it again."
        )
    return posixpath.normpath(name)


def _head(path: pathlib.Path) -> bytes:
    with damage_named(str(path)), path.open("rb") as file:
        return file.read(_BLOCK)


def _in_folder(path: pathlib.Path) -> Iterator[Member]:
    for file in sorted(walk(path)):
        yield dataclasses.replace(
            file_member(file), source=path, name=file.relative_to(path).as_posix()
        )


def walk(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Regular files below a folder, hidden ones left out; links are followed, loops are not.

    Raises:
        SourceError: for a folder that may not be read.
    """

    def refuse(error: OSError) -> None:
        raise SourceError(f"{error.filename} cannot be read: {error.strerror}.") from error

    seen = set()
    for folder, folders, files in os.walk(path, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else [each for each in folders if each[0] != "."]
        if real in seen:
            continue
        seen.add(real)
        for name in files:
            file = pathlib.Path(folder, name)
            if name[0] != "." and (file.is_file() or file.is_symlink()):
                yield file


def _in_zip(path: pathlib.Path) -> Iterator[Member]:
    archive = zipfile.ZipFile(path)
    names = set()
    for info in archive.infolist():
        name = safe_name(info.filename, path)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir():
            continue
        if kind not in (0, stat.S_IFREG) or info.flag_bits & 1:
            raise SourceError(
                f"{name} in {path} is {'encrypted' if info.flag_bits & 1 else 'a link or device'}. "
                "This is not the published archive: download it again."
            )
        if name in names:
            raise SourceError(f"{path} holds two members named {name}. Download it again.")
        names.add(name)
        yield Member(
            source=path,
            name=name,
            size=info.file_size,
            open=functools.partial(archive.open, info),
        )


def _in_tar(path: pathlib.Path, open_tar: Callable[[], IO[bytes]]) -> Iterator[Member]:
    """Members of a tar. tarfile would keep each of a million headers, and believe any claim."""
    with contextlib.closing(open_tar()) as stream:
        long_name = ""
        first = True
        while (header := _tar_header(path, stream, first)) is not None:
            first = False
            if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
                content = _tar_extension(path, stream, header)
                if header.type == tarfile.GNUTYPE_LONGNAME:
                    long_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
                elif header.type == tarfile.XHDTYPE:
                    long_name = _pax_name(path, content) or long_name
                continue
            name = safe_name(long_name or header.name, path)
            long_name = ""
            if header.type == tarfile.DIRTYPE:
                continue
            if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                raise SourceError(
                    f"{name} in {path} is a link, a device or a sparse file. This is not the "
                    "published archive: download it again."
                )
            part = _Part(stream, header.size, f"{name} in {path}")
            yield Member(
                source=path, name=name, size=header.size, open=functools.partial(_same, part)
            )
            part.skip()
        _drain(path, stream)


def _drain(path: pathlib.Path, stream: IO[bytes]) -> None:
    """Reads what follows a tar's end mark: gzip compares its checksum at the very end."""
    left = _LARGEST_END
    while chunk := stream.read(1 << 20):
        left -= len(chunk)
        if left < 0:
            raise SourceError(
                f"{path} goes on for more than {_LARGEST_END:,} bytes after its end mark. This is "
                "not the published archive: download it again."
            )


def _tar_header(path: pathlib.Path, stream: IO[bytes], first: bool) -> tarfile.TarInfo | None:
    block = stream.read(_BLOCK)
    if len(block) < _BLOCK:
        raise SourceError(
            f"{path} {'is empty' if first else 'is cut short: it lacks the end mark of a tar file'}"
            ". Download it again."
        )
    if not block.strip(b"\0"):
        return None
    header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")  # type: ignore[arg-type]
    if header.size < 0:
        raise SourceError(f"{header.name} in {path} claims {header.size} bytes. Download it again.")
    return header


def _tar_extension(path: pathlib.Path, stream: IO[bytes], header: tarfile.TarInfo) -> bytes:
    if header.size > _LARGEST_EXTENSION:
        raise SourceError(
            f"{path} has a header that claims {header.size:,} bytes. This is not the published "
            "archive: download it again."
        )
    part = _Part(stream, header.size, f"a header of {path}")
    content = part.read()
    part.skip()
    return content


def _pax_name(path: pathlib.Path, content: bytes) -> str:
    """The member's path in a pax header; records are `<length> <key>=<value>` and a newline."""
    name = ""
    while content.strip(b"\0"):
        match = re.match(rb"(\d{1,7}) ([^=]+)=", content)
        length = int(match[1]) if match else 0
        if match is None or not match.end() < length <= len(content):
            raise SourceError(f"{path} has a damaged pax header. Download it again.")
        value = content[match.end() : length - 1]
        if match[2].startswith(b"GNU.sparse") or match[2] == b"size":
            raise SourceError(
                f"{path} has a sparse or oversized member. This is not the published archive: "
                "download it again."
            )
        if match[2] == b"path":
            name = value.decode("utf-8", "surrogateescape")
        content = content[length:]
    return name


def _same(part: "_Part") -> IO[bytes]:
    return part  # type: ignore[return-value]


class _Part:
    """The content of one member of a tar, as a stream of its own."""

    def __init__(self, stream: IO[bytes], size: int, what: str) -> None:
        self._stream, self._left, self._what = stream, size, what
        self._padding = -size % _BLOCK

    def read(self, size: int = -1) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        chunks = []
        while size:
            # Never more at once than is there: the size is only a claim.
            chunk = self._stream.read(min(size, 1 << 20))
            if not chunk:
                raise SourceError(f"{self._what} is cut short. Download the archive again.")
            chunks.append(chunk)
            size -= len(chunk)
            self._left -= len(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        """Does nothing: `skip` goes on from here."""

    def skip(self) -> None:
        while self._left:
            self.read(1 << 20)
        self._left, self._padding = self._padding, 0
        self.read()
