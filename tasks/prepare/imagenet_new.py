"""The new, anti-aliased downsampled ImageNet of Chrabaszcz et al.: pickled batches, or npz files.

A batch is a dict of "data", uint8 `[N, 3 * H * W]` with the red plane first, then the green and the
blue; "labels", 1 to 1000; and, for training, the "mean". Refs: https://arxiv.org/abs/1707.08819.
"""

import math
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from tasks.prepare import members, npz, pickles
from tasks.prepare.datasets import Dataset
from tasks.prepare.records import Record, Source, check_splits, source_of
from tasks.prepare.refusals import SourceError, shown

_BATCH = re.compile(r"(train_data_batch_([1-9]|10)|val_data)(\.npz)?")
_NUM_BATCHES = 10
_CHUNK = 1024  # images transposed at one time
_MARGIN = 1.05  # over the images of the largest published batch
_BESIDES = 16 << 20  # bytes of a batch that are not images: its labels and its mean


def read(dataset: Dataset, sources: Sequence[pathlib.Path], *, partial: bool) -> Source:
    """Return the dataset from its archives, their extracted folders, or single batches.

    A batch is held in memory: 0.4 GB at 32 x 32, 1.6 GB at 64 x 64.

    Raises:
        SourceError: if it is another dataset, incomplete or damaged. Damage inside a batch is found
            when that batch is read.
    """
    found: dict[str, members.Member] = {}
    for source in sources:
        names = []
        for member in _members(dataset, source):
            names.append(member.name)
            if match := _BATCH.fullmatch(member.basename):
                members.add_once(found, match[1], member)
        if not any(_BATCH.fullmatch(name.rsplit("/", 1)[-1]) for name in names):
            raise _not_these(dataset, source, names)
    train = [f"train_data_batch_{number}" for number in range(1, _NUM_BATCHES + 1)]
    wanted = {"train": train, "validation": ["val_data"]}
    batches = {
        split: [found[name] for name in names if name in found]
        for split, names in wanted.items()
        if found.keys() & set(names)
    }
    check_splits(dataset, batches, sources, partial=partial)
    if len(batches.get("train", ())) != _NUM_BATCHES and not partial:
        raise SourceError(
            f"{dataset.title} has train_data_batch_1 to _10; the sources hold "
            f"{shown([str(each) for each in batches['train']])}. Name the other archive too."
        )
    return source_of(dataset, batches, _records, partial=partial)


def is_batches(path: pathlib.Path) -> bool:
    """Return whether a zip file or a folder holds batches of this format, or a file is one."""
    found = members.iterate(path, largest=1 << 62, alone=_BATCH)
    return any(_BATCH.fullmatch(member.basename) for member in found)


def _members(dataset: Dataset, source: pathlib.Path) -> Iterator[members.Member]:
    members.check_source(source)
    most = _most_images(dataset) * math.prod(dataset.image_shape) + _BESIDES
    if source.is_file() and not _BATCH.fullmatch(source.name) and not members.is_zip(source):
        raise _not_these(dataset, source, [source.name])
    return members.iterate(source, largest=most, alone=_BATCH)


def _most_images(dataset: Dataset) -> int:
    """Bound the images of a batch: a tenth of the training images, or all for validation."""
    sizes = dataset.sizes
    return int(_MARGIN * max(-(-sizes["train"] // _NUM_BATCHES), sizes["validation"]))


def _not_these(dataset: Dataset, source: pathlib.Path, names: list[str]) -> SourceError:
    old = any(re.search(r"(train|valid)_\d+x\d+|\.png$", name) for name in [*names, source.name])
    variant = " This looks like the old variant: prepare it as `imagenet32_old` or `imagenet64_old`"
    return SourceError(
        f"{source} holds no batch of {dataset.title}, which needs {dataset.sources}. It holds "
        f"{shown(names)}.{variant + ', if that is the one you want.' if old else ''}"
    )


def _records(dataset: Dataset, split: str, batches: Sequence[members.Member]) -> Iterator[Record]:
    height, width, channels = dataset.image_shape
    index = 0
    for member in batches:
        for rows in _rows(member, dataset):
            planes = rows.reshape(-1, channels, height, width)
            for image in np.ascontiguousarray(planes.transpose(0, 2, 3, 1)):
                yield Record(key=index, image=image)
                index += 1


def _rows(member: members.Member, dataset: Dataset) -> Iterator[np.ndarray]:
    """Yield the batch's images, uint8 `[n, 3 * H * W]`, some at a time."""
    if member.basename.endswith(".npz"):
        archive, what = npz.open_npz(member), str(member)
        _, labels_shape, _ = npz.open_array(archive, "labels", what)
        stream, data_shape, dtype = npz.open_array(archive, "data", what)
        _check_batch(member, data_shape, dtype, labels_shape, dataset)
        yield from npz.rows(stream, data_shape, what, _CHUNK)
        return
    fields = pickles.load(member)
    data, labels = fields.get("data"), fields.get("labels")
    if not isinstance(data, np.ndarray) or not isinstance(labels, list | np.ndarray):
        raise SourceError(
            f"{member} must hold an array 'data' and a list 'labels', and holds {shown([*fields])}."
        )
    labels_shape = labels.shape if isinstance(labels, np.ndarray) else (len(labels),)
    _check_batch(member, data.shape, data.dtype, labels_shape, dataset)
    yield from (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))


def _check_batch(
    member: members.Member,
    data_shape: tuple[int, ...],
    dtype: np.dtype,
    labels_shape: tuple[int, ...],
    dataset: Dataset,
) -> None:
    width = math.prod(dataset.image_shape)
    if dtype != np.uint8 or data_shape[1:] != (width,):
        other = {3 * size**2: f" These are {size}x{size} images." for size in (8, 16, 32, 64)}
        del other[width]
        hint = other.get(data_shape[-1], "") if data_shape else ""
        raise SourceError(
            f"{member} must hold uint8 'data' [N, {width:,}], got {dtype} {list(data_shape)}.{hint}"
        )
    if labels_shape != data_shape[:1]:
        num_labels = f"{labels_shape[0]:,} labels" if len(labels_shape) == 1 else "none [N]"
        raise SourceError(
            f"{member} must have a label per image, got {num_labels} for "
            f"{data_shape[0]:,} images. Download the archive again."
        )
    if data_shape[0] > _most_images(dataset):
        raise SourceError(
            f"{member} holds {data_shape[0]:,} images, more than any batch of {dataset.title}. "
            "This is not the published archive: download it again."
        )
