"""Read splits: a split of a seqio task or mixture, decoded once, whole and in its own order.

Images whose source can identify its files are kept in an on-disk cache (`image_cache`); others are
gathered in memory without a second copy (`gathering`). `task_images` reads one task, and `batches`
makes batches of the split.

seqio and TensorFlow take seconds to import, so only the functions that need them do.
"""

import contextlib
import dataclasses
import importlib
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from idode_gin import checks
from idode_gin.feed import (
    data,
    image_cache,
    image_fingerprints,
    lean_tensorflow,
    task_images,
    tasks_package,
)
from idode_gin.feed import labels as labels_lib
from idode_gin.feed.augmentation import Augmentation
from idode_gin.feed.data import DatasetConfig, ImageSplit, narrowed
from idode_gin.feed.gathering import Gathered
from idode_gin.feed.image_fingerprints import ImageFingerprint
from idode_gin.feed.task_images import TaskSplit
from idode_gin.reports import paths, progress

DEFAULT_MODULE = tasks_package.NAME


def set_data_dirs(
    *, tfds_data_dir: str | None = None, seqio_cache_dirs: Sequence[str] = ()
) -> None:
    """Set the data directory of TensorFlow Datasets and the folders of seqio's offline caches."""
    lean_tensorflow.load()
    import seqio

    if tfds_data_dir:
        seqio.set_tfds_data_dir_override(tfds_data_dir)
    seqio.add_global_cache_dirs(list(seqio_cache_dirs))


def load_split(config: DatasetConfig) -> ImageSplit:
    """Return a split: every image once, uncropped, in the dataset's own order.

    Decodes it into the cache if it is not there yet, so random preprocessing by a user's own task
    happens once, not once per epoch. With `config.num_images`, returns some of it. A mixture is its
    tasks one after the other, which is right only if its rates make every image equally likely.

    Raises:
      ValueError: for an unknown module, task or split (with the nearest name), `use_cached` for a
        task that seqio cannot cache, a mixture with other rates or of several augmentations,
        images that `ImageSplit` refuses or that differ in size, and a split that differs from its
        published or recorded facts or from `config.fingerprint`.
    """
    provider, parts = _opened(config)
    split = _as_split(_read(provider, parts, config), parts, config)
    if split.augmentation is not None:
        split.augmentation.check(split.image_shape)
    if len(parts) == 1 and parts[0].facts is not None:
        known = parts[0].facts.known(config.split)
        if known is not None:
            known.check(str(split), split.fingerprint)
    split = split.some(config.num_images or split.num_images)
    _check_fingerprint(split, config.fingerprint)
    return split


def load_labels(config: DatasetConfig, num_classes: int) -> np.ndarray | None:
    """Return the class of each image of `load_split`, `[N]`; None if a task has none.

    A task of the user's own gives them as a feature "label".

    Raises:
      ValueError: as `load_split`, or if the dataset is known to have another number of classes.
    """
    labels = [part.labels(num_classes) for part in _opened(config)[1]]
    found = [each for each in labels if each is not None]
    if len(found) < len(labels):
        return None
    of_all = np.concatenate(found)
    return of_all[data.spread(config.num_images or len(of_all), len(of_all))]


def check_there(config: DatasetConfig, num_classes: int) -> None:
    """Check that a user's own files of a split are there, and have as many classes as the model.

    Decodes nothing, and looks for no data without a `data_path`: then only the names of module,
    task and split are checked.

    Raises:
      ValueError: as `load_split` and `load_labels`.
    """
    _, parts = _opened(config)
    if config.data_path is None:
        return
    for part in parts:
        if part.source is not None:
            part.source.check_there(config.split)
    names = class_names(config) if num_classes else ()
    if names and len(names) != num_classes:
        raise ValueError(
            f"{config.data_path} has {labels_lib.among(len(names), names)}, but the model is "
            f"conditioned on one of {num_classes}. Set NUM_CLASSES = {len(names)}."
        )


def nothing_there(config: DatasetConfig, num_classes: int) -> str:
    """Return what `load_split` will say if nothing is at `data_path` yet; "" if all is there.

    Raises:
      ValueError: as `check_there`, if there is something.
    """
    try:
        check_there(config, num_classes)
    except ValueError as error:
        path = config.data_path and paths.stored(config.data_path, "DATA_PATH")
        if not path or paths.in_bucket(path) or os.path.exists(path):
            raise
        return str(error)
    return ""


def class_names(config: DatasetConfig) -> tuple[str, ...]:
    """Return the name of each class, by its number; empty if a task has none, or they differ."""
    found = {part.class_names() for part in _opened(config)[1]}
    return found.pop() if len(found) == 1 else ()


def _opened(config: DatasetConfig) -> tuple[Any, list[TaskSplit]]:
    """Return a task or mixture and the split of each of its tasks that has it; reads nothing."""
    lean_tensorflow.load()
    import tensorflow as tf

    # TensorFlow would take the GPU memory that JAX needs. Once it runs, it refuses the change, and
    # the memory is taken already.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    provider = _find_task_or_mixture(config)
    if config.split not in provider.splits:
        raise ValueError(
            f"{config.mixture_or_task_name!r} has no split {config.split!r}. "
            f"Its splits: {', '.join(repr(each) for each in sorted(provider.splits))}."
        )
    tasks = [task for task in getattr(provider, "tasks", [provider]) if config.split in task.splits]
    return provider, [task_images.open_split(task, config) for task in tasks]


def _find_task_or_mixture(config: DatasetConfig) -> Any:
    import seqio

    name, module = config.mixture_or_task_name, config.module or DEFAULT_MODULE
    tasks_package.reserve()
    file = tasks_package.namesake() if f"{module}.".startswith(f"{DEFAULT_MODULE}.") else None
    unread = f" {file} is not imported: rename it and bind DatasetConfig.module." if file else ""
    try:
        importlib.import_module(module)
    except ImportError as error:
        is_missing = isinstance(error, ModuleNotFoundError) and error.name is not None
        if not is_missing or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"`module`: {module!r} cannot be imported: {error}. Install what it imports, or "
                "correct the name there."
            ) from error
        raise ValueError(
            f"`module` must name an importable module that registers {name!r}, got "
            f"module={module!r}: {error}. Is the folder that holds it on PYTHONPATH?{unread}"
        ) from error
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in known:
        raise ValueError(
            f"No seqio task or mixture named {name!r} after importing {module!r}. "
            f"{checks.nearest(name, known)}{unread}"
        )
    return seqio.get_mixture_or_task(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Read:
    """The images of all tasks in turn, and their conditioning if they have any, `[N, ...]`."""

    images: np.ndarray
    conditioning: np.ndarray | None = None
    fingerprint: ImageFingerprint | None = None


def _read(provider: Any, parts: list[TaskSplit], config: DatasetConfig) -> _Read:
    is_mixed = len(parts) > 1
    cached = [_from_cache(part, config, config.memory_map or is_mixed) for part in parts]
    found = [each for each in cached if each is not None]
    if len(found) == len(parts):
        _check_rates(provider, parts, [len(each.images) for each in found])
        whole = found[0]
        if is_mixed:
            directory = config.cache_dir or image_cache.default_directory()
            name = f"{config.mixture_or_task_name}-{config.split}"
            whole = image_cache.join(directory, name, found, memory_map=config.memory_map)
        return _Read(images=whole.images, fingerprint=whole.fingerprint)
    (source, *_) = (part.source for part in parts)
    array = None if is_mixed or source is None else source.array(config.split)
    if array is None:
        return _gather(provider, parts, cached, config)
    return _Read(images=narrowed(array)[...])  # a view: the source's own array stays writable


def _gather(
    provider: Any,
    parts: list[TaskSplit],
    cached: list[image_cache.CachedImages | None],
    config: DatasetConfig,
) -> _Read:
    counts = [_num_images(*each) for each in zip(parts, cached, strict=True)]
    expected = sum(counts) if all(counts) else 0
    images, conditioning = Gathered("image", expected), Gathered("conditioning", expected)
    ends = [0]
    for part, known in zip(parts, cached, strict=True):
        pieces = image_cache.pieces(known) if known is not None else ()
        for chunk in part.chunks() if known is None else ({"image": each} for each in pieces):
            images.add(narrowed(chunk["image"]))
            if "conditioning" in chunk:
                conditioning.add(chunk["conditioning"].astype(np.float32, copy=False))
        ends.append(len(images))
    _check_rates(provider, parts, np.diff(ends).tolist())
    if 0 < len(conditioning) < len(images):
        raise ValueError(
            f"Some tasks of {config.mixture_or_task_name!r} have a conditioning and some have not."
        )
    given = conditioning.result() if len(conditioning) else None
    gathered, found = images.result(), None
    for part, known, (start, end) in zip(parts, cached, itertools.pairwise(ends), strict=True):
        if known is None and part.source is not None:
            found = image_fingerprints.fingerprint(gathered[start:end])
            part.source.check_recorded(config.split, found)
    whole = found if len(parts) == 1 else None  # taken once, here or later
    return _Read(images=gathered, conditioning=given, fingerprint=whole)


def _num_images(part: TaskSplit, cached: image_cache.CachedImages | None) -> int:
    """Return N of one task, or 0 if it is unknown before its images are read."""
    if cached is not None:
        return len(cached.images)
    return (part.source.num_input_examples(part.split) or 0) if part.source is not None else 0


def _from_cache(
    part: TaskSplit, config: DatasetConfig, memory_map: bool
) -> image_cache.CachedImages | None:
    """Return one task's images, decoded if need be; None if they are not to be cached."""
    source = part.source
    key = source.cache_key(part.split) if source is not None else None
    if source is None or key is None or config.cache_dir == "":
        return None
    known = source.known(part.split)

    def decode() -> Iterator[np.ndarray]:
        return _with_progress(
            (narrowed(chunk["image"]) for chunk in part.chunks()),
            f"Decoding {part.split!r} of {part.name!r}, once",
            source.num_input_examples(part.split),
        )

    found = image_cache.load(
        config.cache_dir or image_cache.default_directory(),
        f"{source.name or part.name}-{part.split}",
        key,
        decode,
        memory_map=memory_map,
        expected_bytes=int(np.prod([known.num_images, *known.image_shape])) if known else 0,
    )
    source.check_recorded(part.split, found.fingerprint)
    return found


def _with_progress(
    chunks: Iterator[np.ndarray], title: str, num_images: int | None
) -> Iterator[np.ndarray]:
    with progress.phase(title, num_images) as going_on:
        for chunk in chunks:
            yield chunk
            going_on.advance(len(chunk))


def _check_rates(provider: Any, parts: list[TaskSplit], num_images: list[int]) -> None:
    if len(parts) < 2:
        return
    sizes = np.array(num_images, float)
    rates = np.array([provider.get_rate(part.task) for part in parts], float)
    if not np.allclose(rates / rates.sum(), sizes / sizes.sum(), rtol=1e-6, atol=0):
        found = ", ".join(
            f"{part.name}: rate {rate:g}, {size:g} images"
            for part, rate, size in zip(parts, rates, sizes, strict=True)
        )
        raise ValueError(
            f"The rates of mixture {provider.name!r} must be proportional to its tasks' numbers of "
            f"images, got {found}. Other rates would repeat some images of an epoch and miss "
            "others; use such rates (`seqio.mixing_rate_num_examples`) or name one task."
        )


def _as_split(read: _Read, parts: list[TaskSplit], config: DatasetConfig) -> ImageSplit:
    facts = [part.facts for part in parts if part.facts is not None]
    own = {part.facts.augmentation if part.facts is not None else None for part in parts}
    if len(own) > 1 and config.augmentation is None:
        raise ValueError(
            f"All tasks of a mixture must be augmented alike, and those of {parts[0].split!r} of "
            f"{config.mixture_or_task_name!r} are not: {', '.join(map(str, own))}. Bind "
            "DatasetConfig.augmentation, or name one task."
        )
    augmentation = config.augmentation or own.pop()
    images, conditioning = read.images, _conditioning(read, augmentation, config)
    images.setflags(write=False)
    conditioning.setflags(write=False)
    variants = dict.fromkeys(each.variant for each in facts)
    return ImageSplit(
        images=images,
        conditioning=conditioning,
        name=config.mixture_or_task_name,
        split=config.split,
        variant=" and ".join(filter(None, variants)),
        augmentation=augmentation,
        known_fingerprint=read.fingerprint,
    )


def _conditioning(
    read: _Read, augmentation: Augmentation | None, config: DatasetConfig
) -> np.ndarray:
    """Return float32 `[N, K]`: the tasks' own, or zeros, which mean an image as it is."""
    if read.conditioning is None:
        size = 1 if augmentation is None else augmentation.conditioning_size
        # A view of one row: no memory per image.
        return np.broadcast_to(np.zeros((1, size), np.float32), (len(read.images), size))
    if augmentation is not None:
        raise ValueError(
            f"{config.mixture_or_task_name!r} has a conditioning of its own, which an augmentation "
            "would overwrite. Set augmentation = None."
        )
    given = read.conditioning
    return given[:, None] if given.ndim == 1 else given


def _check_fingerprint(split: ImageSplit, wanted: str | None) -> None:
    if wanted is None:
        return
    found = split.fingerprint
    if not (found.sha256.startswith(wanted) or found.content_sha256.startswith(wanted)):
        raise ValueError(
            f"{split} must have fingerprint={wanted}, got sha256 {found.sha256}, "
            f"content_sha256 {found.content_sha256}. Prepare the dataset again, or leave "
            "`fingerprint` out."
        )
