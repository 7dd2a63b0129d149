"""Reducing images to one size: the square in the middle, then the mean of each area.

Bits per dim of reduced images cannot be compared with those of the originals, or of another filter:
means of areas have less noise than pixels.

Not `Image.resize` with Pillow's box filter, which weighs pixels of the original by 1 or 0: from 29
to 28 pixels it drops a row. Here all sums are integers below 2^53, so that float64 holds them and
every machine finds the same pixels.
"""

import math

import numpy as np

from tasks.prepare.refusals import SourceError

_ROWS = 256  # that are float64 at one time: all of a large photograph would take a gigabyte


def in_words(size: int) -> str:
    """Return what `reduce` does, for the record of a dataset."""
    return f"square in the middle reduced to {size}x{size} by area means"


def reduce(image: np.ndarray, size: int, what: str) -> np.ndarray:
    """Return an image cropped to the square in its middle and reduced to `size`.

    A pixel of the result is the mean of the area that it covers, with halves rounded up. Colours of
    RGBA are weighted by their opacity.

    Args:
        image: uint8 `[H, W, C]`, C one of 1, 3, 4.
        size: height and width of the result.
        what: name of the image, for messages.

    Returns:
        uint8 `[size, size, C]`.

    Raises:
        SourceError: if the image is smaller, and would have to be enlarged.
    """
    height, width, channels = image.shape
    side = min(height, width)
    if side < size:
        raise SourceError(
            f"{what} is {height}x{width}: --size {size} would enlarge it. Choose a --size of at "
            f"most {side}, or move it away."
        )
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return square
    covers, whole = _covers(side, size), side**2
    planes = np.moveaxis(square, -1, 0)
    colours, opacity = planes[:3], planes[3:]  # the latter has one plane, or none
    weights = _sums(covers, *opacity) if channels == 4 else whole
    means = [_mean(_sums(covers, each, *opacity), weights) for each in colours]
    if channels == 4:
        means.append(_mean(weights, whole))
    return np.stack(means, axis=-1)


def _covers(side: int, size: int) -> np.ndarray:
    """Return how much of each pixel an area covers in one direction, in units of 1 / size.

    Integers as float64 `[size, side]`; those of an area add up to `side`.
    """
    starts, areas = np.arange(side) * size, np.arange(size)[:, None] * side
    overlaps = np.minimum(starts + size, areas + side) - np.maximum(starts, areas)
    return overlaps.clip(0).astype(np.float64)


def _sums(covers: np.ndarray, *factors: np.ndarray) -> np.ndarray:
    """Return sums over areas of a product of uint8 planes, `[side, side] -> [size, size]`.

    With one factor or two, no sum is above 2^27 pixels (`image_files.MAX_PIXELS`) * 255 * 255,
    which is below 2^43.
    """
    rows = []
    for start in range(0, covers.shape[1], _ROWS):
        some = [each[start : start + _ROWS].astype(np.float64) for each in factors]
        rows.append(math.prod(some) @ covers.T)
    return covers @ np.concatenate(rows)


def _mean(sums: np.ndarray, weights: np.ndarray | int) -> np.ndarray:
    """Return sums / weights, rounded, uint8; 0 where no weight is."""
    return ((2 * sums + weights) // np.maximum(2 * weights, 1)).astype(np.uint8)
