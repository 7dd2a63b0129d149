"""Images of a split that go to their latents and back: which ones, and with what error."""

from typing import Any

import numpy as np

from idode_gin.feed import data
from idode_gin.runs import means


def check_indices(indices: tuple[int, ...], split: data.ImageSplit, name: str, remedy: str) -> None:
    """Check that there are indices, and that all of them are in the split.

    Args:
        indices: places in the split.
        split: the images.
        name: of the setting that holds the indices.
        remedy: a binding with valid indices.

    Raises:
        ValueError: if there are none, or one is not in the split.
    """
    outside = [each for each in indices if not 0 <= each < split.num_images]
    if outside or not indices:
        got = f"{outside[0]}" if outside else "none"
        raise ValueError(
            f"`{name}` must be places in {split}, 0 to {split.num_images - 1}, at least one, got "
            f"{got}. Bind others: {remedy}"
        )


def summarize_error(error: np.ndarray) -> dict[str, Any]:
    """Return mean, its standard error and maximum of round-trip errors of any shape."""
    unit = {"unit": "levels, root mean square over pixels"}
    return {**unit, **means.summarize(error), "max": float(np.max(error))}
