"""The feed: a seqio task's split, whole and in memory, as global batches of NumPy arrays.

What a training step sees is a pure function of the seed and the step: there is no iterator to save,
and a run that is resumed, or cut over more hosts, sees what it would have seen. Every epoch is a
permutation of the whole split. Evaluation walks the split in order, every image exactly once.

A batch is a dict, with the batch axis `B` first:

    image         integers `[B, H, W, C]` in `0..V-1`
    conditioning  float32 `[B, K]`, zeros `[B, 1]` where the task has none
    position      int32 `[B]`, place in the global batch
    index         int32 `[B]`, the image's place in the split
    mask          float32 `[B]`, 1 for an image, 0 for padding

seqio and TensorFlow take seconds to import, so only the functions that need them do.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import numbers
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar, final

import numpy as np

from idode_gin import checks

Batch = dict[str, np.ndarray]
T = TypeVar("T")

DEFAULT_MODULE = "tasks"
_READ_CHUNK = 256  # images per TensorFlow call: reading them one by one is ten times slower


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Which images, in what order. The names are t5x's.

    Attributes:
      mixture_or_task_name: a registered seqio task, or a mixture (see `load_split`).
      split: one of its splits, such as "train".
      batch_size: images per global batch, over all devices and hosts.
      shuffle: a new permutation each epoch; otherwise the split's own order, over and over.
      seed: chooses the permutations.
      use_cached: read seqio's offline cache of the task, from a folder given to `set_data_dirs`.
      module: the module whose import registers the task; None is this repository's `tasks`.

    Raises:
      ValueError: for a batch size below one, a negative seed, or either not an integer.
    """

    mixture_or_task_name: str
    split: str
    batch_size: int
    shuffle: bool = True
    seed: int = 0
    use_cached: bool = False
    module: str | None = None

    def __post_init__(self) -> None:
        _check_integer("batch_size", self.batch_size, at_least=1)
        _check_integer("seed", self.seed, at_least=0)


@final
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSplit:
    """One split of one dataset, in memory and in its own order.

    Attributes:
      images: integers `[N, H, W, C]`.
      conditioning: float32 `[N, K]`.
      name: the task or mixture it came from.
      split: the split's name.

    Raises:
      ValueError: when there are no images, they are not integers of rank 4, or the conditioning is
        not one finite row per image.
    """

    images: np.ndarray
    conditioning: np.ndarray
    name: str
    split: str

    def __post_init__(self) -> None:
        images, rows = self.images, self.conditioning
        if images.ndim != 4 or images.dtype.kind not in "iu":
            raise ValueError(
                f"{self} must hold integer images [N, H, W, C], got {images.dtype} "
                f"{list(images.shape)}. Leave pixels as integers in 0..V-1, with a channel axis: "
                "the model does the scaling."
            )
        if images.size == 0:
            raise ValueError(f"{self} holds no pixels: its images are {list(images.shape)}.")
        if rows.ndim != 2 or len(rows) != len(images) or not np.isfinite(rows).all():
            raise ValueError(
                f"{self} must hold one finite conditioning row [K] per image, got "
                f"{list(rows.shape)} for {len(images)} images."
            )

    def __str__(self) -> str:
        return f"Split {self.split!r} of {self.name!r}"

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the pixels' bytes, in order: equal on two hosts that loaded the same images."""
        return hashlib.sha256(np.ascontiguousarray(self.images).data).hexdigest()


def set_data_dirs(
    *, tfds_data_dir: str | None = None, seqio_cache_dirs: Sequence[str] = ()
) -> None:
    """Where TensorFlow Datasets keeps its data, and where seqio's offline caches are."""
    import seqio

    if tfds_data_dir:
        seqio.set_tfds_data_dir_override(tfds_data_dir)
    seqio.add_global_cache_dirs(list(seqio_cache_dirs))


def load_split(config: DatasetConfig) -> ImageSplit:
    """Reads a whole split into memory: every image, once, uncropped, in the dataset's own order.

    Random preprocessing therefore happens once, not once per epoch. A mixture is its tasks one
    after the other, which is right only where its rates make every image equally likely.

    Raises:
      ValueError: for an unknown module, task or split (with the nearest name), a mixture with other
        rates, and images that `ImageSplit` refuses or that differ in size.
    """
    _hide_accelerators_from_tensorflow()
    provider = _find_task_or_mixture(config)
    if config.split not in provider.splits:
        raise ValueError(
            f"{config.mixture_or_task_name!r} has no split {config.split!r}. "
            f"Its splits: {', '.join(repr(each) for each in sorted(provider.splits))}."
        )
    tasks = getattr(provider, "tasks", [provider])
    tasks = [task for task in tasks if config.split in task.splits]
    parts = [_read_task(task, config) for task in tasks]
    _check_rates(provider, tasks, parts)
    return _join(parts, config)


def check_images(split: ImageSplit, levels: int) -> None:
    """Raises ValueError, naming the first bad pixel, unless all pixels are in `0..levels-1`."""
    _check_integer("levels", levels, at_least=2)
    smallest, largest = int(split.images.min()), int(split.images.max())
    if smallest >= 0 and largest < levels:
        return
    index, *place = np.argwhere((split.images < 0) | (split.images >= levels))[0].tolist()
    raise ValueError(
        f"{split} must hold integers in 0..{levels - 1}, because levels={levels}, but image "
        f"{index} has {split.images[(index, *place)]} at (row, column, channel) {tuple(place)}, "
        f"and all values lie in {smallest}..{largest}. Set the levels to the dataset's own."
    )


@functools.lru_cache(maxsize=4)  # a step asks for the order of the epoch it is in, or of two
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The permutation of one epoch, int64 `[num_images]`, read-only: a pure function."""
    # Ranks of raw random words: NumPy promises that those never change, and does not promise it
    # for `Generator.permutation`. A run resumed under a newer NumPy continues as it would have.
    words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_images)
    order = np.argsort(words, kind="stable")
    order.setflags(write=False)
    return order


def train_batch(split: ImageSplit, config: DatasetConfig, step: int) -> Batch:
    """The global batch of a training step, counted from 0: a pure function of seed and step.

    Step `s` takes the images `s B … (s + 1) B - 1` of the epochs laid end to end, so a batch may
    take the end of one permutation and the start of the next.
    """
    step = int(step)
    _check_integer("step", step, at_least=0)
    first, end = step * config.batch_size, (step + 1) * config.batch_size
    num_images = split.num_images
    pieces = []
    for epoch in range(first // num_images, (end - 1) // num_images + 1):
        start = epoch * num_images
        within = slice(max(first - start, 0), min(end - start, num_images))
        if config.shuffle:
            pieces.append(epoch_order(int(config.seed), epoch, num_images)[within])
        else:
            pieces.append(np.arange(within.start, within.stop))
    return _gather(split, np.concatenate(pieces), num_real=config.batch_size)


def eval_batches(split: ImageSplit, batch_size: int) -> Iterator[Batch]:
    """Every image exactly once, in order; the last batch is filled up with masked image 0."""
    _check_integer("batch_size", batch_size, at_least=1)
    return _eval_batches(split, batch_size)


def prefetch(batches: Iterable[T], *, size: int = 2) -> Generator[T, None, None]:
    """Yields the same items, made up to `size` (and one) ahead by a background thread.

    An exception of `batches` is raised here, after the items that came before it. Closing the
    iterator, or dropping it, ends the thread.
    """
    _check_integer("size", size, at_least=1)
    return _prefetch(batches, size)


def _eval_batches(split: ImageSplit, batch_size: int) -> Iterator[Batch]:
    for start in range(0, split.num_images, batch_size):
        num_real = min(batch_size, split.num_images - start)
        indices = np.zeros(batch_size, np.int64)
        indices[:num_real] = np.arange(start, start + num_real)
        yield _gather(split, indices, num_real=num_real)


def _gather(split: ImageSplit, indices: np.ndarray, *, num_real: int) -> Batch:
    positions = np.arange(len(indices), dtype=np.int32)
    return {
        "image": split.images[indices],
        "conditioning": split.conditioning[indices],
        "position": positions,
        "index": indices.astype(np.int32),
        "mask": (positions < num_real).astype(np.float32),
    }


def _prefetch(batches: Iterable[T], size: int) -> Generator[T, None, None]:
    ahead: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=size)
    stop = threading.Event()

    def produce() -> None:
        try:
            for item in batches:
                ahead.put(("item", item))
                if stop.is_set():
                    return
            ahead.put(("end", None))
        except BaseException as error:  # the consumer's to handle, whatever it is
            ahead.put(("error", error))

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ahead.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        # The thread may wait for room: it needs one place for what it holds, then sees `stop`.
        with contextlib.suppress(queue.Empty):
            while True:
                ahead.get_nowait()
        thread.join()


def _hide_accelerators_from_tensorflow() -> None:
    import tensorflow as tf

    # TensorFlow would take the GPU memory that JAX needs. It refuses once it is running, and then
    # it is too late to matter.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")


def _find_task_or_mixture(config: DatasetConfig) -> Any:
    import seqio

    name, module = config.mixture_or_task_name, config.module or DEFAULT_MODULE
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses something itself
        raise ValueError(
            f"`module` must name an importable module that registers {name!r}, got "
            f"module={module!r}: {error}. Is the folder that holds it on PYTHONPATH?"
        ) from error
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in known:
        raise ValueError(
            f"No seqio task or mixture named {name!r} after importing {module!r}. "
            f"{checks.nearest(name, known)}"
        )
    return seqio.get_mixture_or_task(name)


def _read_task(task: Any, config: DatasetConfig) -> Batch:
    """One task's "image" and, if it has it, "conditioning", `[N, ...]` each."""
    if config.use_cached and task.supports_caching and not task.cache_dir:
        raise ValueError(
            f"Task {task.name!r} is in none of the seqio cache folders that were given, but "
            "use_cached=True. Cache it, name its folder, or set use_cached=False."
        )
    dataset = task.get_dataset(
        sequence_length=None,  # any length would crop the images
        split=config.split,
        use_cached=config.use_cached,
        shuffle=False,
        num_epochs=1,
        try_in_mem_cache=False,
    )
    spec = dataset.element_spec
    if "image" not in spec:
        raise ValueError(
            f'Task {task.name!r} must yield an "image" feature, got {", ".join(sorted(spec))}. '
            "Rename it in the task's preprocessors."
        )
    keys = [key for key in ("image", "conditioning") if key in spec]
    dataset = dataset.map(lambda example: {key: example[key] for key in keys})
    of_one_shape = all(spec[key].shape.is_fully_defined() for key in keys)
    chunks = list(dataset.batch(_READ_CHUNK if of_one_shape else 1).as_numpy_iterator())
    if not chunks:
        raise ValueError(f"Split {config.split!r} of task {task.name!r} is empty.")
    return {key: _concatenate([chunk[key] for chunk in chunks], key) for key in keys}


def _concatenate(chunks: list[np.ndarray], what: str) -> np.ndarray:
    start = 0
    for chunk in chunks:
        if chunk.shape[1:] != chunks[0].shape[1:]:
            raise ValueError(
                f'Every "{what}" of a split must have one shape, but number {start} is '
                f"{list(chunk.shape[1:])} and number 0 is {list(chunks[0].shape[1:])}. Crop or "
                "resize in the task's preprocessors."
            )
        start += len(chunk)
    return np.concatenate(chunks)


def _check_rates(provider: Any, tasks: list[Any], parts: list[Batch]) -> None:
    if len(tasks) < 2:
        return
    sizes = np.array([len(part["image"]) for part in parts], float)
    rates = np.array([provider.get_rate(task) for task in tasks], float)
    if not np.allclose(rates / rates.sum(), sizes / sizes.sum(), rtol=1e-6, atol=0):
        found = ", ".join(
            f"{t.name}: rate {r:g}, {n:g} images"
            for t, r, n in zip(tasks, rates, sizes, strict=True)
        )
        raise ValueError(
            f"The rates of mixture {provider.name!r} must be proportional to its tasks' numbers of "
            f"images, got {found}. Other rates would repeat some images of an epoch and miss "
            "others; use such rates (`seqio.mixing_rate_num_examples`) or name one task."
        )


def _join(parts: list[Batch], config: DatasetConfig) -> ImageSplit:
    images = _concatenate([part["image"] for part in parts], "image")
    if images.dtype.kind in "iu" and images.dtype != np.uint8:
        narrow = images.astype(np.int32)  # what a device holds
        images = narrow if np.array_equal(narrow, images) else images
    if "conditioning" in parts[0]:
        conditioning = _concatenate([part["conditioning"] for part in parts], "conditioning")
        if conditioning.ndim == 1:
            conditioning = conditioning[:, None]
        conditioning = conditioning.astype(np.float32)
    else:
        conditioning = np.zeros((len(images), 1), np.float32)
    images.setflags(write=False)
    conditioning.setflags(write=False)
    return ImageSplit(
        images=images,
        conditioning=conditioning,
        name=config.mixture_or_task_name,
        split=config.split,
    )


def _check_integer(name: str, value: object, *, at_least: int) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"`{name}` must be an integer, {at_least} or more, got {name}={value!r}.")
