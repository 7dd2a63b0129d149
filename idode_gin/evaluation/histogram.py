"""The baseline of an evaluation: independent histograms, which ignore relations between pixels."""

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np

from idode_gin import checks
from idode_gin.feed import data, loading
from idode_gin.reports import progress

_CELLS = 1 << 22  # of the table held at one time: 32 MB of counts, and as much of logarithms
_CHUNK = 1024  # images whose pixels are held as 8-byte integers at one time


def baseline(
    dataset: data.DatasetConfig, fitted_on: str, split: data.ImageSplit, levels: int
) -> np.ndarray | None:
    """Return the bits per dim of a split under histograms fitted on the split `fitted_on`, `[N]`.

    None, with a line that says so, if `fitted_on` holds the images of `split`: histograms of the
    images that they score would give too few bits per dim.
    """
    if fitted_on != dataset.split:
        with progress.phase(f"fitting a histogram to {fitted_on}"):
            fitted = loading.load_split(
                dataclasses.replace(dataset, split=fitted_on, num_images=None, fingerprint=None)
            )
            if not _holds(fitted.images, split.images):
                return bits_per_dim(fitted.images, split.images, levels)
    print(
        f"The histogram baseline is left out: {fitted_on!r} (Evaluator.histogram_split) holds the "
        "images that are scored, and a histogram fitted on those gives too few bits per dim.",
        flush=True,
    )
    return None


def _holds(fitted: np.ndarray, scored: np.ndarray) -> bool:
    """Return True if all images of `scored` are among `fitted`, compared pixel by pixel."""

    def digest(image: np.ndarray) -> bytes:
        return hashlib.blake2b(image.astype(scored.dtype).tobytes(), digest_size=16).digest()

    missing = {digest(image) for image in scored}
    for image in fitted:
        missing.discard(digest(image))
        if not missing:
            return True
    return False


def bits_per_dim(train: np.ndarray, images: np.ndarray, levels: int) -> np.ndarray:
    """Return `-log2 p(x) / d` of each image, `[N, H, W, C] -> [N]`, float64.

        p(x) = prod_i p_i(x_i)      p_i(v) = (n_i(v) + 1) / (M + V)

    where `n_i(v)` of the `M` images of `train` have the value `v` at position `i`, and all images
    are integers in `0..levels-1`. Adding one (Laplace's rule of succession) gives unseen values a
    probability, so that `p` is a distribution over integers, whose bits per dim are comparable with
    those of any other model.

    Raises:
        ValueError: if the shapes of the images differ, and see `checks.check_pixels`.
    """
    checks.check_pixels(train, levels)
    checks.check_pixels(images, levels)
    if images.shape[1:] != train.shape[1:]:
        raise ValueError(
            f"Images must have the shape the histogram was fitted on, {list(train.shape[1:])}, got "
            f"{list(images.shape[1:])}."
        )
    dims, shown = train[0].size, images.reshape(len(images), -1)
    at_once = max(1, _CELLS // levels)
    log2_p = np.zeros(len(images))
    for first in range(0, dims, at_once):
        here = slice(first, first + at_once)
        table = _log2_table(train.reshape(len(train), -1)[:, here], levels)
        parts = [table[each].sum(axis=1) for each in _histogram_cells(shown[:, here], levels)]
        log2_p += np.concatenate(parts)
    return -log2_p / dims


def _log2_table(train: np.ndarray, levels: int) -> np.ndarray:
    """Return log2 p_i(v) as a flat table, for positions i of `[M, positions]`."""
    counts = np.zeros(train.shape[1] * levels, np.int64)
    for cells in _histogram_cells(train, levels):
        counts += np.bincount(cells.reshape(-1), minlength=counts.size)
    return np.log2((counts + 1) / (len(train) + levels))


def _histogram_cells(images: np.ndarray, levels: int) -> Iterator[np.ndarray]:
    """Yield the index of each value of `[N, positions]` in the flat table, by some images."""
    offsets = levels * np.arange(images.shape[1])
    for start in range(0, len(images), _CHUNK):
        yield offsets + images[start : start + _CHUNK].astype(np.int64)
