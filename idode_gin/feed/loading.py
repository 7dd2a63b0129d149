"""Reads splits: a split of a seqio task, decoded once, whole and in its own order.

Images are kept in an on-disk cache where the task's source can say which files they come from
(`image_cache`), and are in memory otherwise, where they are never twice (`gathering`). What a
source may tell of itself is in `task_images`. `batches` makes batches of a split.

seqio and TensorFlow take seconds to import, so only the functions that need them do.
"""

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from idode_gin import checks
from idode_gin.feed import image_cache, image_fingerprints, task_images
from idode_gin.feed.augmentation import Augmentation
from idode_gin.feed.data import DatasetConfig, ImageSplit
from idode_gin.feed.gathering import Gathered, narrowed
from idode_gin.feed.image_fingerprints import ImageFingerprint

DEFAULT_MODULE = "tasks"


def set_data_dirs(
    *, tfds_data_dir: str | None = None, seqio_cache_dirs: Sequence[str] = ()
) -> None:
    """Where TensorFlow Datasets keeps its data, and where seqio's offline caches are."""
    import seqio

    if tfds_data_dir:
        seqio.set_tfds_data_dir_override(tfds_data_dir)
    seqio.add_global_cache_dirs(list(seqio_cache_dirs))


def load_split(config: DatasetConfig) -> ImageSplit:
    """A whole split: every image, once, uncropped, in the dataset's own order.

    Decodes it into the cache if it is not there yet. Random preprocessing of tasks from elsewhere
    therefore happens once, not once per epoch. A mixture is its tasks one after the other, which is
    right only where its rates make every image equally likely.

    Raises:
      ValueError: for an unknown module, task or split (with the nearest name), `use_cached` for a
        task that seqio cannot cache, a mixture with other rates, images that `ImageSplit` refuses
        or that differ in size, and a split that is not what it is known to be or
        `config.fingerprint` asks for.
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
    split = _as_split(_read(provider, tasks, config), tasks, config)
    if split.augmentation is not None:
        split.augmentation.check(split.image_shape)
    if len(tasks) == 1:
        _check_known(split, task_images.source_of(tasks[0], config))
    _check_fingerprint(split, config.fingerprint)
    return split


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Read:
    """The images of all tasks in turn, and their conditioning if they have any, `[N, ...]`."""

    images: np.ndarray
    conditioning: np.ndarray | None = None
    fingerprint: ImageFingerprint | None = None


def _read(provider: Any, tasks: list[Any], config: DatasetConfig) -> _Read:
    """From the cache where the sources allow it, otherwise gathered from the tasks themselves."""
    is_mixed = len(tasks) > 1
    cached = [_from_cache(task, config, config.memory_map or is_mixed) for task in tasks]
    found = [each for each in cached if each is not None]
    if is_mixed and len(found) == len(tasks):
        _check_rates(provider, tasks, [len(each.images) for each in found])
        directory = config.cache_dir or image_cache.default_directory()
        name = f"{config.mixture_or_task_name}-{config.split}"
        found = [image_cache.join(directory, name, found, memory_map=config.memory_map)]
    if len(found) == 1 and found[0].images.dtype in (np.uint8, np.int32):
        return _Read(images=found[0].images, fingerprint=found[0].fingerprint)
    if not is_mixed and not found:
        array = task_images.array_of(task_images.plain_source(tasks[0], config), config.split)
        if array is not None:
            return _Read(images=narrowed(array)[...])  # a view: the source's own stays writable
    return _gather(provider, tasks, cached, config)


def _gather(
    provider: Any,
    tasks: list[Any],
    cached: list[image_cache.CachedImages | None],
    config: DatasetConfig,
) -> _Read:
    counts = [_num_images(*each, config) for each in zip(tasks, cached, strict=True)]
    expected = sum(counts) if all(counts) else 0
    images, conditioning = Gathered("image", expected), Gathered("conditioning", expected)
    sizes = []
    for task, known in zip(tasks, cached, strict=True):
        before = len(images)
        for chunk in _chunks(task, known, config):
            images.add(narrowed(chunk["image"]))
            if "conditioning" in chunk:
                conditioning.add(chunk["conditioning"].astype(np.float32, copy=False))
        sizes.append(len(images) - before)
    _check_rates(provider, tasks, sizes)
    if 0 < len(conditioning) < len(images):
        raise ValueError(
            f"Some tasks of {config.mixture_or_task_name!r} have a conditioning and some have not."
        )
    given = conditioning.result() if len(conditioning) else None
    read = _Read(images=images.result(), conditioning=given)
    ends = np.cumsum(sizes)
    for task, known, start, end in zip(tasks, cached, ends - sizes, ends, strict=True):
        plain = task_images.plain_source(task, config)
        if known is None and hasattr(plain, "check_recorded"):
            found = image_fingerprints.fingerprint(read.images[start:end])
            plain.check_recorded(config.split, found)
            if len(tasks) == 1:  # taken once, here or later
                read = dataclasses.replace(read, fingerprint=found)
    return read


def _num_images(task: Any, cached: image_cache.CachedImages | None, config: DatasetConfig) -> int:
    """N of one task, or 0 where it is not known before they are read."""
    if cached is not None:
        return len(cached.images)
    plain = task_images.plain_source(task, config)
    return (plain.num_input_examples(config.split) or 0) if plain is not None else 0


def _chunks(
    task: Any, cached: image_cache.CachedImages | None, config: DatasetConfig
) -> Iterator[task_images.Chunk]:
    if cached is not None:
        return ({"image": piece} for piece in image_cache.pieces(cached))
    plain = task_images.plain_source(task, config)
    if plain is not None:
        return task_images.plain_chunks(plain, config.split, str(task.name))
    return task_images.chunks_through_task(task, config)


def _from_cache(
    task: Any, config: DatasetConfig, memory_map: bool
) -> image_cache.CachedImages | None:
    """One task's images, decoded if need be; None where they are not to be cached."""
    plain = task_images.plain_source(task, config)
    key = plain.cache_key(config.split) if hasattr(plain, "cache_key") else None
    if key is None or config.cache_dir == "":
        return None
    known = getattr(plain, "known", lambda split: None)(config.split)
    expected = int(np.prod([known["num_images"], *known["image_shape"]])) if known else 0

    def decode() -> Iterator[np.ndarray]:
        chunks = task_images.plain_chunks(plain, config.split, str(task.name))
        return _with_progress(
            (narrowed(chunk["image"]) for chunk in chunks),
            f"Decoding {config.split!r} of {task.name!r}, once",
            plain.num_input_examples(config.split),
        )

    found = image_cache.load(
        config.cache_dir or image_cache.default_directory(),
        f"{getattr(plain, 'name', task.name)}-{config.split}",
        key,
        decode,
        memory_map=memory_map,
        expected_bytes=expected,
    )
    if hasattr(plain, "check_recorded"):
        plain.check_recorded(config.split, found.fingerprint)
    return found


def _with_progress(
    chunks: Iterator[np.ndarray], what: str, num_images: int | None
) -> Iterator[np.ndarray]:
    import tqdm

    with tqdm.tqdm(desc=what, total=num_images, unit="image", unit_scale=True, disable=None) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk))


def _check_rates(provider: Any, tasks: list[Any], num_images: list[int]) -> None:
    if len(tasks) < 2:
        return
    sizes = np.array(num_images, float)
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


def _as_split(read: _Read, tasks: list[Any], config: DatasetConfig) -> ImageSplit:
    sources = [task_images.source_of(task, config) for task in tasks]
    augmentation = config.augmentation or next(
        filter(None, (getattr(each, "augmentation", None) for each in sources)), None
    )
    images, conditioning = read.images, _conditioning(read, augmentation, config)
    images.setflags(write=False)
    conditioning.setflags(write=False)
    variants = dict.fromkeys(str(getattr(each, "variant", "")) for each in sources)
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
    """float32 `[N, K]`: the tasks' own, or zeros, which say that nothing was done."""
    if read.conditioning is None:
        size = 1 if augmentation is None else augmentation.conditioning_size
        # One row for all images, in no memory.
        return np.broadcast_to(np.zeros((1, size), np.float32), (len(read.images), size))
    if augmentation is not None:
        raise ValueError(
            f"{config.mixture_or_task_name!r} has a conditioning of its own, which an augmentation "
            "would overwrite. Set augmentation = None."
        )
    given = read.conditioning
    return given[:, None] if given.ndim == 1 else given


def _check_known(split: ImageSplit, source: Any) -> None:
    """Raises ValueError unless the split is what the source knows it to be."""
    known = getattr(source, "known", lambda split: None)(split.split)
    if known is None:
        return
    found = split.fingerprint
    if found.num_images != known["num_images"]:
        sentence = source.other_variants(found.num_images, split.split)
        raise ValueError(
            f"{split} must hold {known['num_images']:,} images, got {found.num_images:,}. "
            f"{sentence or 'Prepare the dataset again.'}"
        )
    if found.image_shape != tuple(known["image_shape"]):
        raise ValueError(
            f"Images of {split} must be {tuple(known['image_shape'])}, got {found.image_shape}."
        )
    mean, tolerance = known.get("channel_mean"), known.get("channel_mean_tolerance", 0.0)
    if mean is not None and np.abs(np.subtract(mean, found.channel_mean)).max() > tolerance:
        raise ValueError(
            f"{split} is known for channel means of {_numbers(mean)}, got "
            f"{_numbers(found.channel_mean)}. These are other pixels: prepare the dataset again "
            "from the publisher's own files."
        )


def _check_fingerprint(split: ImageSplit, wanted: str | None) -> None:
    if wanted is None:
        return
    found = split.fingerprint
    if not (found.sha256.startswith(wanted) or found.content_sha256.startswith(wanted)):
        raise ValueError(
            f"{split} does not have the pixels asked for: fingerprint={wanted}, got sha256 "
            f"{found.sha256}, whatever the order {found.content_sha256}."
        )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{each:.3f}" for each in values)
