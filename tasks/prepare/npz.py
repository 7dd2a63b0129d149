"""Arrays of an npz file, read some rows at a time; a header's claim is checked before."""

import contextlib
import io
import math
import tokenize
import zipfile
from collections.abc import Iterator

import numpy as np

from tasks.prepare.members import Member, damage_named
from tasks.prepare.refusals import SourceError

# What NumPy's reader of headers raises, which parses the text of a Python dict.
_NO_HEADER = (
    *(ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError),
    tokenize.TokenError,
)


def open_npz(member: Member) -> zipfile.ZipFile:
    """The archive, held in memory: a zip is read from its end, which a stream does not offer."""
    with damage_named(str(member)):
        return zipfile.ZipFile(io.BytesIO(member.read()))


def shape_of(archive: zipfile.ZipFile, name: str, what: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array.

    Raises:
        SourceError: if there is no such array, it holds objects, or claims more than is there.
    """
    with damage_named(what), contextlib.closing(_stream(archive, name, what)) as stream:
        return _header(stream, archive.getinfo(f"{name}.npy").file_size, f"{name} in {what}")


def rows(archive: zipfile.ZipFile, name: str, what: str, chunk: int) -> Iterator[np.ndarray]:
    """A matrix `[N, D]`, up to `chunk` rows at a time.

    Raises:
        SourceError: like `shape_of`, and if it is cut short.
    """
    with damage_named(what), contextlib.closing(_stream(archive, name, what)) as stream:
        size = archive.getinfo(f"{name}.npy").file_size
        (num_rows, width), dtype = _header(stream, size, f"{name} in {what}")
        for start in range(0, num_rows, chunk):
            wanted = min(chunk, num_rows - start) * width * dtype.itemsize
            content = stream.read(wanted)
            if len(content) != wanted:
                raise SourceError(f"{name} in {what} is cut short. Download it again.")
            yield np.frombuffer(content, dtype).reshape(-1, width)
        stream.read(1)  # the end, where the checksum of the whole is compared


def _stream(archive: zipfile.ZipFile, name: str, what: str) -> zipfile.ZipExtFile:
    try:
        return archive.open(f"{name}.npy")  # type: ignore[return-value]
    except KeyError as error:
        raise SourceError(
            f"{what} must hold an array {name!r}, and holds {', '.join(archive.namelist()[:10])}."
        ) from error


def _header(stream: zipfile.ZipExtFile, size: int, what: str) -> tuple[tuple[int, ...], np.dtype]:
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(stream)
        shape, fortran, dtype = read[version](stream)
    except _NO_HEADER as error:
        raise SourceError(f"{what} is not an array: {str(error)[:200]}.") from error
    if dtype.hasobject or (fortran and len(shape) > 1):
        raise SourceError(f"{what} must hold numbers row by row, got {dtype}, column by column.")
    claimed = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or claimed != size - stream.tell():
        raise SourceError(
            f"{what} claims {shape} of {dtype}, {claimed:,} bytes, and holds "
            f"{size - stream.tell():,}. Download the archive again."
        )
    return shape, dtype
