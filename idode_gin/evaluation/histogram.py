"""The likelihood to beat: independent histograms, which see no relation between pixels."""

import dataclasses
from collections.abc import Iterator
from typing import final

import numpy as np

_CHUNK = 1024  # images whose pixels are held as 8-byte integers at one time


@final
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HistogramModel:
    """Every pixel and channel drawn from its own histogram, apart from all others.

        p(x) = prod_i p_i(x_i)      p_i(v) = (n_i(v) + 1) / (N + V)

    with `n_i(v)` how many of the `N` training images have the value `v` at place `i`. Adding one
    (Laplace's rule of succession) keeps values never seen possible, so `p` is a probability over
    the integers themselves, comparable with a bits per dimension of any other model.

    Attributes:
      log2_probabilities: float64 `[H, W, C, V]`, in bits.
    """

    log2_probabilities: np.ndarray

    @classmethod
    def fit(cls, images: np.ndarray, levels: int) -> "HistogramModel":
        """Counts the training images, integers `[N, H, W, C]` in `0..levels-1`.

        Raises:
          ValueError: for images of another rank or type, or with values outside that range.
        """
        _check(images, levels)
        counts = np.zeros(images[0].size * levels, np.int64)
        for cells in _histogram_cells(images, levels):
            counts += np.bincount(cells.reshape(-1), minlength=counts.size)
        probabilities = (counts + 1) / (len(images) + levels)
        shape = (*images.shape[1:], levels)
        return cls(log2_probabilities=np.log2(probabilities).reshape(shape))

    def bits_per_dim(self, images: np.ndarray) -> np.ndarray:
        """`-log2 p(x) / d` of each image, `[N, H, W, C] -> [N]`, float64.

        Raises:
          ValueError: for images of another shape or type, or with values outside the range.
        """
        *shape, levels = self.log2_probabilities.shape
        _check(images, levels)
        if list(images.shape[1:]) != shape:
            raise ValueError(
                f"Images must have the shape the histogram was fitted on, {shape}, got "
                f"{list(images.shape[1:])}."
            )
        table = self.log2_probabilities.reshape(-1)
        bits = [-table[cells].mean(axis=1) for cells in _histogram_cells(images, levels)]
        return np.concatenate(bits)


def _histogram_cells(images: np.ndarray, levels: int) -> Iterator[np.ndarray]:
    """For some images at a time, the place of each pixel's value in the flat table, `[n, d]`."""
    offsets = levels * np.arange(images[0].size)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        yield offsets + chunk.reshape(len(chunk), -1).astype(np.int64)


def _check(images: np.ndarray, levels: int) -> None:
    if images.ndim != 4 or images.dtype.kind not in "iu" or images.size == 0:
        raise ValueError(
            "Images must be integers [N, H, W, C] with N of one or more, got "
            f"{images.dtype} {list(images.shape)}."
        )
    if images.min() < 0 or images.max() >= levels:
        raise ValueError(
            f"Pixels must be in 0..{levels - 1}, because levels={levels}, got values from "
            f"{images.min()} to {images.max()}. Set the number of levels to the dataset's own."
        )
