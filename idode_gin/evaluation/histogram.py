"""The baseline of an evaluation: independent histograms, which ignore relations between pixels."""

import dataclasses
from collections.abc import Iterator
from typing import final

import numpy as np

from idode_gin import checks

_CHUNK = 1024  # images whose pixels are held as 8-byte integers at one time


@final
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HistogramModel:
    """Every pixel and channel follows its own histogram, independently of all others.

        p(x) = prod_i p_i(x_i)      p_i(v) = (n_i(v) + 1) / (N + V)

    where `n_i(v)` of the `N` training images have the value `v` at position `i`. Adding one
    (Laplace's rule of succession) gives unseen values a probability, so that `p` is a distribution
    over integers, whose bits per dim are comparable with those of any other model.

    Attributes:
      log2_probabilities: float64 `[H, W, C, V]`, in bits.
    """

    log2_probabilities: np.ndarray

    @classmethod
    def fit(cls, images: np.ndarray, levels: int) -> "HistogramModel":
        """Count the training images, integers `[N, H, W, C]` in `0..levels-1`.

        Raises:
          ValueError: see `checks.check_pixels`.
        """
        checks.check_pixels(images, levels)
        counts = np.zeros(images[0].size * levels, np.int64)
        for cells in _histogram_cells(images, levels):
            counts += np.bincount(cells.reshape(-1), minlength=counts.size)
        probabilities = (counts + 1) / (len(images) + levels)
        shape = (*images.shape[1:], levels)
        return cls(log2_probabilities=np.log2(probabilities).reshape(shape))

    def bits_per_dim(self, images: np.ndarray) -> np.ndarray:
        """Return `-log2 p(x) / d` of each image, `[N, H, W, C] -> [N]`, float64.

        Raises:
          ValueError: for images of another shape, and see `checks.check_pixels`.
        """
        *shape, levels = self.log2_probabilities.shape
        checks.check_pixels(images, levels)
        if list(images.shape[1:]) != shape:
            raise ValueError(
                f"Images must have the shape the histogram was fitted on, {shape}, got "
                f"{list(images.shape[1:])}."
            )
        table = self.log2_probabilities.reshape(-1)
        bits = [-table[cells].mean(axis=1) for cells in _histogram_cells(images, levels)]
        return np.concatenate(bits)


def _histogram_cells(images: np.ndarray, levels: int) -> Iterator[np.ndarray]:
    """Yield the index of each pixel's value in the flat table, `[n, d]` for n images at a time."""
    offsets = levels * np.arange(images[0].size)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        yield offsets + chunk.reshape(len(chunk), -1).astype(np.int64)
