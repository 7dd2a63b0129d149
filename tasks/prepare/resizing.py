"""Reducing images to one size: the square in the middle, then the mean of each area.

Bits per dim of reduced images cannot be compared with those of the originals, or of another filter:
means of areas have less noise than pixels.

Not `Image.resize` with Pillow's box filter, which weighs pixels of the original by 1 or 0: from 29
to 28 pixels it drops a row. Here all sums are integers below 2^53, so that float64 holds them and
every machine finds the same pixels.
"""

import numpy as np

from tasks.prepare.refusals import SourceError


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
    planes = np.moveaxis(square, -1, 0)
    opacity = planes[3].astype(np.float64) if channels == 4 else 1.0
    means = [_mean(plane * opacity, opacity, size) for plane in planes[:3]]
    if channels == 4:
        means.append(_mean(planes[3], 1.0, size))
    return np.stack(means, axis=-1)


def _mean(values: np.ndarray, weights: np.ndarray | float, size: int) -> np.ndarray:
    """Return sum of values / sum of weights over areas, rounded, uint8; 0 where no weight is.

    `[side, side] -> [size, size]`.
    """
    side = len(values)
    # In units of 1 / size of a pixel, an area has `side` units in each direction.
    starts, areas = np.arange(side) * size, np.arange(size)[:, None] * side
    overlaps = np.minimum(starts + size, areas + side) - np.maximum(starts, areas)
    covers = overlaps.clip(0).astype(np.float64)  # [size, side]
    totals = covers @ values.astype(np.float64) @ covers.T
    norms = covers @ np.broadcast_to(weights, values.shape) @ covers.T
    # Neither is above 2^24 pixels * 255 * 255 < 2^41.
    return ((2 * totals + norms) // np.maximum(2 * norms, 1)).astype(np.uint8)
