"""Splitting a folder of images into train, validation and test by the names of the files.

A file's split depends on its path and the shares alone: it stays the same when others come or go.
"""

import hashlib
import math
import os
import pathlib
from collections.abc import Sequence

from tasks.formats.image_files import SPLITS
from tasks.prepare.refusals import SourceError

Shares = tuple[float, float, float]
"""Shares of train, validation and test, which add up to one."""


def shares(text: str) -> Shares:
    """Return the shares in `0.8,0.1,0.1`.

    Raises:
        SourceError: unless they are three that add up to one, that of train above zero.
    """
    try:
        train, validation, test = map(float, text.split(","))
    except ValueError:
        train = validation = test = math.nan
    given = (train, validation, test)
    if not (train > 0 and min(given) >= 0 and math.isclose(sum(given), 1, abs_tol=1e-6)):
        raise SourceError(
            "--split must be the shares of train, validation and test, which add up to one, such "
            f"as 0.8,0.1,0.1, got {text!r}."
        )
    return given


def in_words(given: Shares) -> str:
    """Return what `split` does, for the record of a dataset."""
    listed = ", ".join(f"{share:g} {name}" for name, share in zip(SPLITS, given, strict=True))
    return f"split by the hash of each file's path: {listed}"


def split(
    root: pathlib.Path, files: Sequence[pathlib.Path], given: Shares
) -> dict[str, list[pathlib.Path]]:
    """Return the files of each split, in their order.

    Raises:
        SourceError: if a split with a share gets no file.
    """
    found: dict[str, list[pathlib.Path]] = {name: [] for name in SPLITS}
    for file in files:
        digest = hashlib.sha256(os.fsencode(file.relative_to(root))).digest()
        place = int.from_bytes(digest[:6], "big") / 2**48
        number = sum(place >= sum(given[: count + 1]) for count in range(2))
        found[SPLITS[number]].append(file)
    for name, share in zip(SPLITS, given, strict=True):
        if share and not found[name]:
            raise SourceError(
                f"--split leaves no image for {name}: {root} holds {len(files):,}. Give {name} a "
                "larger share, or none."
            )
    return {name: each for name, each in found.items() if each}
