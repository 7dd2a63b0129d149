"""One image at a time: a PNG's claims checked before it is decoded, and pixels made into a PNG."""

import io
import math
import struct
import zlib

import numpy as np
from PIL import Image

from tasks.prepare.refusals import SourceError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}


def decode_rgb(content: bytes, shape: tuple[int, int, int], what: str) -> np.ndarray:
    """Pixels of an 8-bit RGB PNG file, uint8 `[H, W, 3]`.

    Args:
        content: the file.
        shape: (H, W, 3) that it must have.
        what: its name, for messages.

    Raises:
        SourceError: if it is no PNG, damaged, or of another size, depth or colour type; that is
            seen from the header, before anything is decoded.
    """
    width, height, depth, colour = header(content, what)
    if (height, width) != shape[:2]:
        raise SourceError(f"{what} must measure {shape[0]}x{shape[1]}, got {height}x{width}.")
    if (depth, colour) != (8, 2):
        raise SourceError(
            f"{what} must be 8-bit RGB, got {depth}-bit {_COLOURS.get(colour, colour)}. Convert it "
            "to RGB, for instance with Pillow's `Image.convert('RGB')`."
        )
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, zlib.error, struct.error) as error:
        raise SourceError(f"{what} cannot be decoded: {error}.") from error
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        raise SourceError(f"{what} decodes to {pixels.dtype} {pixels.shape}, not uint8 {shape}.")
    return pixels


def most_bytes(shape: tuple[int, int, int]) -> int:
    """Of a file: an incompressible image (H, W, C), twice, and room for what else it may carry."""
    return 2 * math.prod(shape) + (64 << 10)


def header(content: bytes, what: str) -> tuple[int, int, int, int]:
    """Width, height, bits per channel and colour type of a PNG file whose chunks are all whole.

    Raises:
        SourceError: if it is no PNG, or a chunk is missing or damaged.
    """
    if not content.startswith(SIGNATURE):
        raise SourceError(f"{what} must be a PNG file, and starts with {content[:8]!r}.")
    position, kinds = len(SIGNATURE), []
    while position < len(content) and b"IEND" not in kinds:
        size, kind = struct.unpack_from(">I4s", content[position : position + 8].ljust(8, b"\0"))
        end = position + 12 + size
        if end > len(content):
            raise SourceError(f"{what} is cut short at byte {len(content):,}.")
        (checksum,) = struct.unpack_from(">I", content, end - 4)
        if zlib.crc32(memoryview(content)[position + 4 : end - 4]) != checksum:
            raise SourceError(f"{what} is damaged: wrong checksum at byte {position:,}.")
        kinds.append(kind)
        position = end
    if kinds[:1] != [b"IHDR"] or kinds[-1] != b"IEND" or b"IDAT" not in kinds:
        raise SourceError(f"{what} is not a whole PNG file: it lacks its first or last chunk.")
    if len(content) < 33:
        raise SourceError(f"{what} is not a whole PNG file.")
    width, height, depth, colour = struct.unpack_from(">IIBB", content, 16)
    return width, height, depth, colour


def encode(image: np.ndarray) -> bytes:
    """A PNG file of uint8 `[H, W, C]`, C one of 1, 3, 4; no pixel is changed."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()
