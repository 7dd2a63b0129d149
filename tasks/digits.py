"""Task `digits`: 1,797 handwritten digits, 8 x 8 x 1, 17 grey levels `0..16`.

The images come with scikit-learn (its `load_digits`, the test half of UCI's Optical Recognition of
Handwritten Digits), so nothing is downloaded. There is no official split; this one is a fixed
permutation, cut into 1,347 training, 150 validation and 300 test images. Labels are the digits 0
to 9.
"""

import functools
import importlib.util
import pathlib

import numpy as np

from tasks import register_images

SPLIT_SIZES = {"train": 1347, "validation": 150, "test": 300}
SPLIT_SEED = 0


def split_indices(split: str) -> np.ndarray:
    """Return the places of a split's images in scikit-learn's own order, `[N]`."""
    # Ranks of raw random words: NumPy guarantees that those never change, unlike
    # `Generator.permutation`.
    words = np.random.PCG64(SPLIT_SEED).random_raw(sum(SPLIT_SIZES.values()))
    order = np.argsort(words, kind="stable")
    start = 0
    for name, size in SPLIT_SIZES.items():
        if name == split:
            return order[start : start + size]
        start += size
    raise ValueError(f"`digits` has no split {split!r}, only {', '.join(SPLIT_SIZES)}.")


@functools.cache
def _table() -> np.ndarray:
    """Return a row for each digit, 64 grey levels and the digit, as `load_digits` reads them."""
    # The file alone: importing scikit-learn takes a second.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("`digits` comes with scikit-learn, which is not installed.")
    file = pathlib.Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    return np.loadtxt(file, delimiter=",", dtype=np.int64)


def load_split(split: str) -> np.ndarray:
    """Return the images of one split, uint8 `[N, 8, 8, 1]`."""
    images = _table()[:, :-1].reshape(-1, 8, 8, 1).astype(np.uint8)
    return images[split_indices(split)]


def load_labels(split: str) -> np.ndarray:
    """Return the digit of each image of one split, integers `[N]`."""
    return _table()[split_indices(split), -1]


register_images("digits", SPLIT_SIZES, load_split, load_labels)
