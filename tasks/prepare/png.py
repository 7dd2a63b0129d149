"""Image files of 8 bits per channel: checked by their headers, then decoded by Pillow."""

import io
import math

import numpy as np
from PIL import Image, UnidentifiedImageError

from tasks.formats import depth
from tasks.prepare.refusals import SourceError

_MOST_PIXELS = 4096 * 4096
_MODES = ("L", "RGB", "RGBA")


def decode(
    content: bytes,
    what: str,
    *,
    formats: tuple[str, ...] = ("PNG",),
    shape: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """Return the pixels of an image file, uint8 `[H, W, C]`.

    Pillow itself turns 16 bits into 8, warns of huge images, and compares the checksums of a PNG
    in `verify` alone.

    Args:
        content: the file.
        what: its name, for messages.
        formats: Pillow's names of those that are accepted.
        shape: required (H, W, 3); None: any shape of grey, RGB or RGBA.

    Raises:
        SourceError: if it is damaged, too large, an animation, or of another kind.
    """
    file = io.BytesIO(content)
    try:
        with Image.open(file, formats=formats) as image:
            _check_header(image, file, what, shape)
            image.verify()  # afterwards it must be opened again
        with Image.open(file, formats=formats) as image:
            pixels = np.asarray(image)
    except SourceError:
        raise
    except UnidentifiedImageError as error:
        raise SourceError(
            f"{what} cannot be read as {' or '.join(formats)}; it starts with {content[:8]!r}."
        ) from error
    except Exception as error:  # Pillow's parsers and decoders raise many kinds for damage
        raise SourceError(f"{what} cannot be decoded ({error!s:.100}).") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def most_bytes(shape: tuple[int, int, int]) -> int:
    """Bound the bytes of a file: twice an incompressible image (H, W, C), and room for texts."""
    return 2 * math.prod(shape) + (64 << 10)


def encode(image: np.ndarray) -> bytes:
    """Return uint8 `[H, W, C]` with C one of 1, 3, 4 as a PNG file; no pixel is changed."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()


def _check_header(
    image: Image.Image, file: io.BytesIO, what: str, shape: tuple[int, int, int] | None
) -> None:
    """Raise SourceError unless an image that is not decoded yet is one that may be."""
    width, height = image.size
    if shape is not None and (height, width) != shape[:2]:
        raise SourceError(f"{what} must measure {shape[0]}x{shape[1]}, got {height}x{width}.")
    if width * height > _MOST_PIXELS:
        raise SourceError(
            f"{what} claims {width:,} x {height:,} pixels; at most {_MOST_PIXELS:,} are read."
        )
    if getattr(image, "n_frames", 1) != 1:
        raise SourceError(f"{what} is an animation. Save one frame.")
    modes = _MODES if shape is None else ("RGB",)
    if image.mode not in modes:
        raise SourceError(
            f"{what} has colour mode {image.mode}, not {' or '.join(modes)}. Convert it, for "
            "instance with Pillow's `Image.convert('RGB')`."
        )
    if found := depth.other_than_8_bits(image, file):
        raise SourceError(f"{what} has {found}; 8 bits are read. {depth.WAY_OUT}")
