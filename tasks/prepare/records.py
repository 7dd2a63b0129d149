"""What a reader hands to the writer."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import final

import numpy as np

from tasks.prepare.datasets import NEW_SIZES, OLD_SIZES, Dataset
from tasks.prepare.refusals import SourceError, shown


@final
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One image.

    Attributes:
        key: what TFDS hashes into the image's place on disk.
        image: uint8 `[H, W, C]`.
        png: the publisher's own PNG file of this image, stored as it is; None: make one.
        fields: the record's other features.
    """

    key: int | str
    image: np.ndarray
    png: bytes | None = None
    fields: Mapping[str, int | str] = dataclasses.field(default_factory=dict)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset ready to be read, once.

    Attributes:
        dataset: which.
        splits: per split, its records; raises SourceError at the first that is no good.
        sizes: how many records each split is expected to hold, or may hold when `partial`.
        image_shape: (H, W, C) of every image.
        label_names: names of the field "label"; empty: there are no fields "id" and "label".
        partial: any number of images is accepted.
        in_order: store in the order of reading, rather than of the hashed keys.
    """

    dataset: Dataset
    splits: Mapping[str, Callable[[], Iterator[Record]]]
    sizes: Mapping[str, int]
    image_shape: tuple[int, int, int]
    label_names: tuple[str, ...] = ()
    partial: bool = False
    in_order: bool = False


def check_splits(
    dataset: Dataset,
    found: Mapping[str, object],
    sources: Sequence[pathlib.Path],
    *,
    partial: bool,
) -> None:
    """Raises SourceError unless the sources hold every split; any will do when `partial`."""
    missing = [split for split in dataset.sizes if split not in found]
    if not found or (missing and not partial):
        given = shown([str(each) for each in sources])
        raise SourceError(
            f"{dataset.title} needs {dataset.sources}. There are no "
            f"{' and no '.join(missing)} images in {given}. Name every archive with --source, or "
            "take what is there with --allow_partial."
        )


def check_size(dataset: Dataset, split: str, num_images: int, *, partial: bool) -> None:
    """Raises SourceError unless a split is whole; when `partial`, unless it has an image."""
    expected = dataset.sizes.get(split)
    if num_images == 0:
        raise SourceError(f"{dataset.title}: the sources hold no image of split {split!r}.")
    if partial or expected is None or num_images == expected:
        return
    other = ""
    for sizes, variant in ((OLD_SIZES, "old"), (NEW_SIZES, "new")):
        if dataset.sizes in (OLD_SIZES, NEW_SIZES) and sizes[split] == num_images:
            other = f" That is the number of the {variant} variant's images."
    raise SourceError(
        f"{dataset.title} has {expected:,} images in split {split!r}; the sources hold "
        f"{num_images:,}.{other} Download the archives again, or keep a subset with "
        "--allow_partial."
    )
