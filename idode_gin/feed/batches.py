"""Batches of a split, as pure functions of seed and step.

There is no iterator to save: a run that is resumed, or split over more processes, sees the same
batches. Every epoch is a permutation of the whole split. Evaluation reads the split in order, every
image exactly once, and is never augmented.

A batch is a dict, with the batch axis `B` first:

    image         integers `[B, H, W, C]` in `0..V-1`
    conditioning  float32 `[B, K]`, zeros `[B, 1]` without any; then a number for each class
    position      int32 `[B]`, place in the global batch
    index         int32 `[B]`, the image's place in the whole split
    mask          float32 `[B]`, 1 for an image, 0 for padding

Each function returns only the requested `rows` of the global batch, so that a process reads the
images of its own devices only.
"""

import collections
import concurrent.futures
import functools
from collections.abc import Generator, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from idode_gin import checks
from idode_gin.feed import augmentation
from idode_gin.feed.data import Batch, DatasetConfig, ImageSplit

T = TypeVar("T")


@functools.lru_cache(maxsize=2)  # a batch lies in one epoch, or spans two
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Return the permutation of one epoch, integers `[num_images]`, read-only.

    A feed from a memory map holds only this and the words of an augmentation for every image: 12 to
    24 bytes. Computing it takes 20 bytes per image.
    """
    # Ranks of raw random words: NumPy guarantees that those never change, unlike
    # `Generator.permutation`, so a run may be resumed under a newer NumPy.
    words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_images)
    order = np.argsort(words, kind="stable").astype(np.min_scalar_type(-num_images))
    order.setflags(write=False)
    return order


def train_batch(
    split: ImageSplit, config: DatasetConfig, step: int, rows: np.ndarray | None = None
) -> Batch:
    """Return the batch of a training step, a pure function of seed and step.

    Step `s` takes the images `s B … (s + 1) B - 1` of the epochs laid end to end, so a batch may
    span the end of one permutation and the start of the next.

    Args:
        split: the images.
        config: batch size, order and seed.
        step: from 0.
        rows: places in the global batch, integers `[n]`; None returns all.
    """
    step = int(step)
    checks.check_integer("step", step, at_least=0)
    rows = np.arange(config.batch_size) if rows is None else np.asarray(rows)
    epochs, places = np.divmod(step * config.batch_size + rows, split.num_images)
    index = np.empty_like(places)
    codes: list[augmentation.Codes] = []
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch  # rows increase, so the epochs' parts stay in order
        index[here] = places[here]
        if config.shuffle:
            index[here] = epoch_order(int(config.seed), epoch, split.num_images)[places[here]]
        if split.augmentation is not None:
            channels = split.image_shape[2]
            codes.append(split.augmentation.codes(config.seed, epoch, index[here], channels))
    batch = _gather(split, index, rows, num_real=config.batch_size)
    if split.augmentation is None or not codes:
        return batch
    joined = augmentation.Codes(*(np.concatenate(each) for each in zip(*codes, strict=True)))
    batch["image"] = augmentation.apply(batch["image"], joined)
    batch["conditioning"] = split.conditioning_of(index, split.augmentation.bits(joined.applied))
    return batch


def eval_batches(
    split: ImageSplit,
    batch_size: int,
    rows: np.ndarray | None = None,
    index: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Yield every image exactly once, in order; the last batch is padded with masked image 0.

    Args:
        split: the images.
        batch_size: of the global batch.
        rows: places in each global batch, integers `[n]`; None returns all.
        index: the images to return, as places in the split; None returns all.
    """
    checks.check_integer("batch_size", batch_size, at_least=1)
    rows = np.arange(batch_size) if rows is None else np.asarray(rows)
    index = np.arange(split.num_images) if index is None else np.asarray(index)
    return (
        _gather(split, chosen, rows, num_real=num_real)
        for chosen, num_real in index_batches(index, batch_size, rows)
    )


def index_batches(
    index: np.ndarray, batch_size: int, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield, for each batch of `index`, its entries at `rows`, 0 for padding; and its real size.

    Args:
        index: integers `[N]`.
        batch_size: of the global batch.
        rows: places in each global batch, integers `[n]`.
    """
    for start in range(0, len(index), batch_size):
        here = index[start : start + batch_size]
        yield np.where(rows < len(here), here[np.minimum(rows, len(here) - 1)], 0), len(here)


def prefetch(batches: Iterable[T], *, size: int = 2) -> Generator[T, None, None]:
    """Yield the same items, made up to `size` + 1 ahead by a background thread.

    If making an item puts it on the devices, the next batch is there before it is needed. An
    exception of `batches` is raised here, after the items before it. Closing or dropping the
    iterator ends the thread.
    """
    checks.check_integer("size", size, at_least=1)
    return _prefetch(batches, size)


def _gather(split: ImageSplit, index: np.ndarray, rows: np.ndarray, *, num_real: int) -> Batch:
    return {
        # `take` is several times faster than indexing, on a memory map as well.
        "image": np.take(split.images, index, axis=0),
        "conditioning": split.conditioning_of(index),
        "position": rows.astype(np.int32),
        "index": split.place_of(index).astype(np.int32),
        "mask": (rows < num_real).astype(np.float32),
    }


def _prefetch(batches: Iterable[T], size: int) -> Generator[T, None, None]:
    source, end = iter(batches), object()

    def make() -> Any:
        return next(source, end)

    with concurrent.futures.ThreadPoolExecutor(1, "prefetch") as thread:
        ahead = collections.deque(thread.submit(make) for _ in range(size + 1))
        try:
            while (item := ahead.popleft().result()) is not end:
                ahead.append(thread.submit(make))
                yield item
        finally:
            for each in ahead:
                each.cancel()
