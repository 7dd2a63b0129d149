"""Task `photo_patches`: 32 x 32 x 3 crops, 8 bits, of the two photographs in scikit-learn.

A stand-in for CIFAR-10 and small ImageNet that needs no download. Each photograph (427 x 640) is
halved to 213 x 320 and cut into ten upright bands of 32 columns:

    column      0   32   64   96  128  160  192  224  256  288
    split       tr   tr   tr   te   tr   tr   tr   va   te   tr

Training crops overlap each other: every fourth row and column of a training stretch. Validation
and test crops tile their bands without overlap. A crop never leaves its stretch, so no pixel of the
photographs is used by two splits; bands are 64 columns of the original, so no 8 x 8 block of the
JPEG files is shared either.
"""

from collections.abc import Iterator

import numpy as np

from tasks import register_images

PATCH = 32
HALVED_SHAPE = (213, 320)
STRIDES = {"train": 4, "validation": PATCH, "test": PATCH}
# First and last-plus-one column, in the halved photograph, of each split's stretches.
STRETCHES = {
    "train": ((0, 96), (128, 224), (288, 320)),
    "validation": ((224, 256),),
    "test": ((96, 128), (256, 288)),
}
NUM_PHOTOGRAPHS = 2


def halve(photograph: np.ndarray) -> np.ndarray:
    """Return the mean of each 2 x 2 block, halves rounded up, without an odd last row or column.

    uint8 `[H, W, C] -> [H // 2, W // 2, C]`.
    """
    height, width, channels = photograph.shape
    even = photograph[: height // 2 * 2, : width // 2 * 2]
    blocks = even.reshape(height // 2, 2, width // 2, 2, channels)
    return ((blocks.sum(axis=(1, 3), dtype=np.int32) + 2) // 4).astype(np.uint8)


def corners(split: str) -> Iterator[tuple[int, int]]:
    """Yield row and column of the top left pixel of each crop, in a halved photograph."""
    stride = STRIDES[split]
    for row in range(0, HALVED_SHAPE[0] - PATCH + 1, stride):
        for first, end in STRETCHES[split]:
            for column in range(first, end - PATCH + 1, stride):
                yield row, column


def crops(halved: np.ndarray, split: str) -> np.ndarray:
    """Return all crops of one halved photograph, `[213, 320, C] -> [N, 32, 32, C]`, dtype kept."""
    if halved.shape[:2] != HALVED_SHAPE:
        raise ValueError(
            f"A halved photograph must measure {HALVED_SHAPE}, got {halved.shape[:2]}: this "
            "scikit-learn ships other photographs, for which the splits were not designed."
        )
    return np.stack([halved[r : r + PATCH, c : c + PATCH] for r, c in corners(split)])


def load_split(split: str) -> np.ndarray:
    """Return one split, uint8 `[N, 32, 32, 3]`: crops of the first photograph, then the second."""
    from sklearn import datasets  # takes a second, which other tasks need not wait for

    photographs = datasets.load_sample_images().images
    return np.concatenate([crops(halve(each), split) for each in photographs])


SPLIT_SIZES = {split: NUM_PHOTOGRAPHS * len(list(corners(split))) for split in STRETCHES}

register_images("photo_patches", SPLIT_SIZES, load_split)
