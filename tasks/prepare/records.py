"""The interface between a reader and the writer: a source with the records of its splits."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, final

import numpy as np

from tasks.prepare.datasets import NEW_SIZES, OLD_SIZES, Dataset
from tasks.prepare.refusals import SourceError, shown

Found = TypeVar("Found")

_IN_MEMORY = 1 << 30  # bytes that TFDS sorts in memory; more goes through temporary files


@final
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One image.

    Attributes:
        key: TFDS hashes it into the image's place on disk.
        image: uint8 `[H, W, C]`.
        png: the publisher's own PNG file of this image, stored unchanged; None: make one.
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
        dataset: its description.
        splits: per split, a function that yields its records; raises SourceError at the first that
            is refused.
        sizes: expected number of records of each split; empty where any number is accepted.
        label_names: names of the field "label"; empty: there are no fields "id" and "label".
        partial: any number of images is accepted.
        in_order: store in the order of reading, rather than of the hashed keys.
        resizing: what was done to the pixels of the files, in words; "" if they are unchanged.
        splitting: how the images were put into splits, in words; "" if they were in splits.
    """

    dataset: Dataset
    splits: Mapping[str, Callable[[], Iterator[Record]]]
    sizes: Mapping[str, int]
    label_names: tuple[str, ...] = ()
    partial: bool = False
    in_order: bool = False
    resizing: str = ""
    splitting: str = ""

    def bytes_needed(self) -> int:
        """Bound the bytes on disk: photographs make PNG files no larger than their pixels."""
        pixels = sum(self.sizes.values()) * math.prod(self.dataset.image_shape)
        return pixels if pixels <= _IN_MEMORY else 2 * pixels


def source_of(
    dataset: Dataset,
    found: Mapping[str, Found],
    records: Callable[[Dataset, str, Found], Iterator[Record]],
    *,
    partial: bool,
    **fields: Any,
) -> Source:
    """Return a source of the `records` of what was found of each split.

    Args:
        dataset: its description.
        found: split -> where its images are.
        records: yields the images of one split.
        partial: accept any number of images.
        fields: the other fields of the source; by default the published sizes are expected.
    """
    fields.setdefault("sizes", {} if partial else dataset.sizes)
    return Source(
        dataset=dataset,
        splits={split: functools.partial(records, dataset, split, found[split]) for split in found},
        partial=partial,
        **fields,
    )


def check_splits(
    dataset: Dataset,
    found: Mapping[str, object],
    sources: Sequence[pathlib.Path],
    *,
    partial: bool,
) -> None:
    """Raise SourceError unless the sources hold every split; `partial` needs only one."""
    missing = [split for split in dataset.sizes if split not in found]
    if not found or (missing and not partial):
        given = shown([str(each) for each in sources])
        raise SourceError(
            f"{dataset.title} needs {dataset.sources}. There are no "
            f"{' and no '.join(missing)} images in {given}. Name every archive with --source, or "
            "accept a part of the dataset with --allow_partial."
        )


def check_size(dataset: Dataset, split: str, num_images: int, *, partial: bool) -> None:
    """Raise SourceError unless a split has its published size; `partial` needs one image."""
    expected = dataset.sizes.get(split)
    if num_images == 0:
        raise SourceError(f"{dataset.title}: the sources hold no image of split {split!r}.")
    if partial or expected is None or num_images == expected:
        return
    other = ""
    for sizes, variant in ((OLD_SIZES, "old"), (NEW_SIZES, "new")):
        if dataset.sizes in (OLD_SIZES, NEW_SIZES) and sizes[split] == num_images:
            other = f" The {variant} variant has that number of images."
    raise SourceError(
        f"{dataset.title} has {expected:,} images in split {split!r}; the sources hold "
        f"{num_images:,}.{other} Download the archives again, or accept a part of the dataset "
        "with --allow_partial."
    )
