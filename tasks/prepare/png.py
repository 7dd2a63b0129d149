"""PNG files of one image: headers are checked before Pillow decodes them."""

import io
import math
import struct

import numpy as np
from PIL import Image

from tasks.prepare.refusals import SourceError

_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}


def decode_rgb(content: bytes, shape: tuple[int, int, int], what: str) -> np.ndarray:
    """Return the pixels of an 8-bit RGB PNG file, uint8 `[H, W, 3]`.

    Pillow turns 16 bits into 8, and decodes 50,000 x 50,000 pixels: the header is read here. It
    compares checksums in `verify` alone.

    Args:
        content: the file.
        shape: required (H, W, 3).
        what: name of the file, for messages.

    Raises:
        SourceError: if it is no PNG, damaged, or of another size, depth or colour type.
    """
    if not content.startswith(_START[:8]):
        raise SourceError(f"{what} must be a PNG file, and starts with {content[:8]!r}.")
    if not content.startswith(_START) or len(content) < 26:
        raise SourceError(f"{what} is not a whole PNG file.")
    width, height, depth, colour = struct.unpack_from(">IIBB", content, len(_START))
    if (height, width) != shape[:2]:
        raise SourceError(f"{what} must measure {shape[0]}x{shape[1]}, got {height}x{width}.")
    if (depth, colour) != (8, 2):
        raise SourceError(
            f"{what} must be 8-bit RGB, got {depth}-bit {_COLOURS.get(colour, colour)}. Convert it "
            "to RGB, for instance with Pillow's `Image.convert('RGB')`."
        )
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.verify()
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            is_as_claimed = (image.mode, image.size) == ("RGB", (width, height))  # a second IHDR
            if is_as_claimed and (pixels := np.asarray(image)).shape == shape:
                return pixels
    except Exception as error:  # Pillow's parsers and decoders raise many kinds for damage
        raise SourceError(f"{what} is damaged and cannot be decoded: {error}.") from error
    raise SourceError(f"{what} decodes to another image than its header describes.")


def most_bytes(shape: tuple[int, int, int]) -> int:
    """Bound the bytes of a file: twice an incompressible image (H, W, C), and room for texts."""
    return 2 * math.prod(shape) + (64 << 10)


def encode(image: np.ndarray) -> bytes:
    """Return uint8 `[H, W, C]` with C one of 1, 3, 4 as a PNG file; no pixel is changed."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()
