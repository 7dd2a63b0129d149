"""Single image files: their shape by the header, and their pixels."""

import contextlib
import pathlib
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tasks.formats import depth

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
"""Number of channels of each colour mode that holds 8 bits per channel."""
MAX_PIXELS = 1 << 24  # per image; a small file can claim to be as large as memory

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""Pillow's names: the content decides the format, not the file's name."""


def image_shape(path: pathlib.Path) -> tuple[int, int, int]:
    """Return (height, width, channels) from a file's header; nothing is decoded.

    Raises:
        ValueError: if it is not an image, too large, animated, or not 8-bit grey, RGB or RGBA.
    """
    with _opened(path) as image:
        return image.height, image.width, CHANNELS[image.mode]


def read_image(path: pathlib.Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the pixels of a file, uint8 `[H, W, C]`.

    Raises:
        ValueError: with the file's name, if it cannot be read or has another shape.
    """
    with _opened(path) as image:
        if (image.height, image.width, CHANNELS[image.mode]) != shape:
            raise ValueError(f"{path} must be {shape}, but it changed while being read.")
        try:
            return np.asarray(image, np.uint8).reshape(shape)
        except Exception as error:  # Pillow's decoders raise many types for damage
            raise ValueError(f"{path} cannot be decoded: {error}. Replace or remove it.") from error


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Image.Image]:
    """Open an image; raise ValueError unless its header is one that may be decoded."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            with warnings.catch_warnings():
                # MAX_PIXELS is the bound.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image = stack.enter_context(Image.open(file, formats=_FORMATS))
            too_large = image.width * image.height > MAX_PIXELS
            frames = 1 if too_large else getattr(image, "n_frames", 1)
            found = depth.other_than_8_bits(image, file)
        except Exception as error:  # Pillow's parsers raise many types for damage
            raise ValueError(
                f"{path} is not a readable image: {error}. Replace or remove it."
            ) from error
        if too_large:
            raise ValueError(
                f"{path} claims to be {image.height} x {image.width}, but images may have at most "
                f"{MAX_PIXELS:,} pixels. Replace or remove it."
            )
        if image.mode not in CHANNELS or frames != 1:
            raise ValueError(
                f"{path} must be one picture of 8-bit grey, RGB or RGBA ({', '.join(CHANNELS)}), "
                f"got mode {image.mode!r} and {frames} frames. Convert it."
            )
        if found:
            raise ValueError(f"{path} must have 8 bits per channel, got {found}. {depth.WAY_OUT}")
        yield image
