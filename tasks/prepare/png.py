"""PNG files of 8 bits per channel: checked by their headers, then decoded by Pillow."""

import io
import math

import numpy as np
from PIL import Image, UnidentifiedImageError

from tasks.formats import depth
from tasks.prepare.refusals import SourceError

_FORMATS = ("PNG",)


def decode(content: bytes, what: str, *, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the pixels of a published PNG file, uint8 `[H, W, C]`.

    Pillow itself turns 16 bits into 8, warns of huge images, and compares the checksums of a PNG
    in `verify` alone.

    Args:
        content: the file.
        what: its name, for messages.
        shape: required (H, W, 3).

    Raises:
        SourceError: if it is damaged, too large, an animation, or of another kind.
    """
    file = io.BytesIO(content)
    try:
        with Image.open(file, formats=_FORMATS) as image:
            _check_header(image, file, what, shape)
            image.verify()  # afterwards it must be opened again
        with Image.open(file, formats=_FORMATS) as image:
            pixels = np.asarray(image)
    except SourceError:
        raise
    except UnidentifiedImageError as error:
        raise SourceError(
            f"{what} cannot be read as PNG; it starts with {content[:8]!r}."
        ) from error
    except Exception as error:  # Pillow's parsers and decoders raise many kinds for damage
        raise SourceError(f"{what} cannot be decoded ({error!s:.100}).") from error
    return pixels


def most_bytes(shape: tuple[int, int, int]) -> int:
    """Bound the bytes of a file: twice an incompressible image (H, W, C), and room for texts."""
    return 2 * math.prod(shape) + (64 << 10)


def encode(image: np.ndarray) -> bytes:
    """Return uint8 `[H, W, C]` with C one of 1, 3, 4 as a PNG file; no pixel is changed."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()


def _check_header(
    image: Image.Image, file: io.BytesIO, what: str, shape: tuple[int, int, int]
) -> None:
    """Raise SourceError unless an image that is not decoded yet is one that may be."""
    width, height = image.size
    if (height, width) != shape[:2]:
        raise SourceError(f"{what} must measure {shape[0]}x{shape[1]}, got {height}x{width}.")
    if getattr(image, "n_frames", 1) != 1:
        raise SourceError(f"{what} is an animation. Save one frame.")
    if image.mode != "RGB":
        raise SourceError(f"{what} has colour mode {image.mode}, not RGB. Download it again.")
    if found := depth.other_than_8_bits(image, file):
        raise SourceError(f"{what} has {found}; 8 bits are read. Download it again.")
