"""Arrays of an npz file, read some rows at a time.

`numpy.load` allocates what the header of an array claims, and holds the array beside the archive:
measured, 293 MB for one of 154 MB, of which 156 MB are held here. The claim is compared first.
"""

import io
import math
import zipfile
from collections.abc import Iterator
from typing import IO

import numpy as np

from tasks.prepare.members import Member, damage_named
from tasks.prepare.refusals import SourceError


def open_npz(member: Member) -> zipfile.ZipFile:
    """Return the archive, held in memory: a zip is read from its end, unlike a stream."""
    with damage_named(str(member)):
        return zipfile.ZipFile(io.BytesIO(member.read()))


def open_array(
    archive: zipfile.ZipFile, name: str, what: str
) -> tuple[IO[bytes], tuple[int, ...], np.dtype]:
    """Return a stream of an array's values, its shape and its dtype.

    Raises:
        SourceError: if there is no such array, it holds objects, or claims more than is there.
    """
    with damage_named(what):
        if f"{name}.npy" not in archive.namelist():
            names = ", ".join(archive.namelist()[:10])
            raise SourceError(f"{what} must hold an array {name!r}, and holds {names}.")
        stream = archive.open(f"{name}.npy")
        size = archive.getinfo(f"{name}.npy").file_size
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        try:
            shape, is_fortran, dtype = readers[np.lib.format.read_magic(stream)](stream)
        except Exception as error:  # NumPy's reader raises many types for damage
            raise SourceError(
                f"{name} in {what} is not an array: {error!s:.200}. Download it again."
            ) from error
    if dtype.hasobject or (is_fortran and len(shape) > 1):
        raise SourceError(
            f"{name} in {what} must hold numbers row by row, got {dtype}, column by column."
        )
    held, claimed = size - stream.tell(), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or claimed != held:
        raise SourceError(
            f"{name} in {what} claims {shape} of {dtype}, {claimed:,} bytes, and holds {held:,}. "
            "Download the archive again."
        )
    return stream, shape, dtype


def rows(stream: IO[bytes], shape: tuple[int, ...], what: str, chunk: int) -> Iterator[np.ndarray]:
    """Yield a matrix uint8 `[N, D]` that was opened, up to `chunk` rows at a time.

    Raises:
        SourceError: if it is damaged or cut short.
    """
    left, width = shape
    with damage_named(what), stream:
        while content := stream.read(chunk * width):
            yield (part := np.frombuffer(content, np.uint8).reshape(-1, width))
            left -= len(part)
    if left:
        raise SourceError(f"{what} is cut short. Download it again.")
