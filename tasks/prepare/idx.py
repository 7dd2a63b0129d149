"""MNIST and datasets of its form, as published: two IDX files, images and labels, for each split.

An IDX file is a magic number (two zeros, the type of the values, the number of axes), the length of
each axis as a big-endian integer of 32 bits, and the values. Refs: yann.lecun.com/exdb/mnist.
"""

import gzip
import math
import pathlib
import re
import struct
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np

from tasks.formats import published
from tasks.prepare import members
from tasks.prepare.datasets import Dataset
from tasks.prepare.records import Record, Source, check_splits, source_of
from tasks.prepare.refusals import SourceError, shown

_NAME = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
_SPLITS = {"train": "train", "t10k": "test"}
_AXES = {"images": 3, "labels": 1}
_UINT8 = 8  # code of the type in the magic number
_LARGEST = 64 << 20  # bytes of a file; the largest published one has 47 million
_PIECE = 1 << 20  # bytes read at one time, whatever a header claims
_LABEL_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}
_VARIANTS = {each.name: each for each in (published.MNIST, published.FASHION_MNIST)}
NAMES = tuple(_VARIANTS)
"""Datasets of this form."""

Found = tuple[members.Member, np.ndarray]
Split = tuple[np.ndarray, np.ndarray]  # images, labels


def read(dataset: Dataset, sources: Sequence[pathlib.Path], *, partial: bool) -> Source:
    """Return the dataset from its four files, packed or not, or from a folder or archive of them.

    The images are held in memory: 55 MB. Files of these datasets have the same names and sizes, so
    the mean of the training images is compared with the published one.

    Raises:
        SourceError: if it is another dataset, incomplete or damaged.
    """
    arrays = _find(dataset, sources)
    splits: dict[str, Split] = {}
    for prefix, split in _SPLITS.items():
        found = {kind: arrays[prefix, kind] for kind in _AXES if (prefix, kind) in arrays}
        if len(found) == 1:
            (kind,) = set(_AXES) - set(found)
            raise SourceError(
                f"The sources lack {prefix}-{kind}-idx{_AXES[kind]}-ubyte.gz, which belongs to "
                f"{found.popitem()[1][0]}. {dataset.title} needs {dataset.sources}."
            )
        if found:
            splits[split] = _checked(dataset, found)
    check_splits(dataset, splits, sources, partial=partial)
    if not partial:
        _check_mean(dataset, splits["train"][0])
    names = _LABEL_NAMES[dataset.name]
    return source_of(dataset, splits, _records, partial=partial, label_names=names)


def _find(dataset: Dataset, sources: Sequence[pathlib.Path]) -> dict[tuple[str, str], Found]:
    """Return each file and its values, by the start of its name and by what it holds."""
    arrays: dict[tuple[str, str], Found] = {}
    for source in sources:
        names = []
        for member in members.iterate(source, largest=_LARGEST, alone=_NAME):
            names.append(member.name)
            if (match := _NAME.fullmatch(member.basename)) is None:
                continue
            key = (match[1], match[2])
            values = _array(member, dataset, key)
            if key not in arrays:
                arrays[key] = member, values
            elif not np.array_equal(arrays[key][1], values):  # equal: packed and unpacked
                raise SourceError(
                    f"{arrays[key][0]} and {member} differ. Name one of them with --source."
                )
        if not any(_NAME.fullmatch(name.rpartition("/")[2]) for name in names):
            raise SourceError(
                f"{source} holds nothing of {dataset.title}, which needs {dataset.sources}. "
                f"It holds {shown(names)}."
            )
    return arrays


def _array(member: members.Member, dataset: Dataset, key: tuple[str, str]) -> np.ndarray:
    """Return the values of an IDX file, uint8 `[N, 28, 28, 1]` or `[N]`.

    The header is compared with the published sizes before anything of its claims is read.
    """
    split, kind = _SPLITS[key[0]], key[1]
    axes, shape = _AXES[kind], dataset.image_shape
    with members.damage_named(str(member)), member.open() as packed:
        is_packed = member.basename.endswith(".gz")
        stream = gzip.GzipFile(fileobj=packed) if is_packed else packed
        head = stream.read(4)
        if head != bytes((0, 0, _UINT8, axes)):
            raise SourceError(f"{member} must be {kind} in an IDX file{_unlike(head, axes)}.")
        sizes = struct.unpack(f">{axes}I", _exactly(stream, 4 * axes, member))
        if sizes[1:] != (shape[:2] if kind == "images" else ()):
            raise SourceError(
                f"{member} must hold images of {_by(shape[:2])}, got {_by(sizes[1:])}: this is "
                f"not {dataset.title}."
            )
        if not 0 < sizes[0] <= dataset.sizes[split]:
            raise SourceError(
                f"{member} claims {sizes[0]:,} {kind}; {dataset.title} has "
                f"{dataset.sizes[split]:,} in split {split!r}. Download it again."
            )
        content = _exactly(stream, math.prod(sizes), member)
        if stream.read(1):  # reading to the end compares gzip's checksum
            raise SourceError(
                f"{member} holds more than the {sizes[0]:,} {kind} of its header. Download it "
                "again."
            )
    values = np.frombuffer(content, np.uint8)
    return values.reshape(-1, *shape) if kind == "images" else values


def _exactly(stream: gzip.GzipFile | IO[bytes], size: int, member: members.Member) -> bytes:
    """Return the next `size` bytes; raise SourceError if there are fewer."""
    content = bytearray()
    while piece := stream.read(min(size - len(content), _PIECE)):
        content += piece
    if len(content) < size:
        raise SourceError(
            f"{member} is cut short: {size:,} bytes must follow, {len(content):,} can be read. "
            "Download it again."
        )
    return bytes(content)


def _unlike(head: bytes, axes: int) -> str:
    """Return what the first four bytes are, where `axes` axes of uint8 are expected."""
    expected = bytes((0, 0, _UINT8, axes))
    other = {bytes((0, 0, _UINT8, count)): kind for kind, count in _AXES.items()}.get(head)
    if other is not None:
        return f", which holds {other}: the file has the wrong name"
    page = " (a web page: the download was refused)" if head.startswith(b"<") else ""
    return f", which starts with {expected!r}, got {head!r}{page}. Download it again"


def _checked(dataset: Dataset, found: dict[str, Found]) -> Split:
    """Return images and labels of a split that belong together."""
    (images_file, images), (labels_file, labels) = found["images"], found["labels"]
    if len(images) != len(labels):
        raise SourceError(
            f"{images_file} holds {len(images):,} images, but {labels_file} {len(labels):,} "
            "labels. Download both again."
        )
    most = len(_LABEL_NAMES[dataset.name]) - 1
    if labels.max() > most:
        raise SourceError(
            f"{labels_file} must hold labels 0 to {most}, got {labels.max()}: it is damaged, or "
            f"not {dataset.title}."
        )
    return images, labels


def _check_mean(dataset: Dataset, images: np.ndarray) -> None:
    """Raise SourceError unless the training images have the published mean."""
    if len(images) != dataset.sizes["train"]:
        return  # the writer refuses the number
    mean = float(images.mean(dtype=np.float64))
    means = {name: (*(each.train_mean or ()),) for name, each in _VARIANTS.items()}
    near = {
        name
        for name, each in _VARIANTS.items()
        if abs(means[name][0] - mean) <= each.train_mean_tolerance
    }
    if dataset.name not in near:
        other = f"These are those of `{near.pop()}`" if near else "Download the files again"
        raise SourceError(
            f"The training images of {dataset.title} have a mean of {means[dataset.name][0]:.2f}, "
            f"the given ones {mean:.2f}. {other}."
        )


def _records(dataset: Dataset, split: str, found: Split) -> Iterator[Record]:
    for index, (image, label) in enumerate(zip(*found, strict=True)):
        fields: dict[str, int | str] = {"id": f"{split}_{index:05d}", "label": int(label)}
        yield Record(key=index, image=image, fields=fields)


def _by(sizes: Sequence[int]) -> str:
    return "x".join(f"{size:,}" for size in sizes)
