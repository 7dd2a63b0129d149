"""Reads splits: a split of a seqio task, decoded once, whole and in its own order.

Images are kept in an on-disk cache where the task's source can say which files they come from
(`image_cache`), and are in memory otherwise. `batches` makes batches of them.

Beside seqio's own contract a task's source may have any of

    plain                  the source of the images as they are, without augmentation
    augmentation           what training does to them, an `Augmentation`
    variant                which of the published variants it is, in words
    cache_key(split)       hex digest of the files the split is decoded from; None: not cached
    known(split)           {"num_images", "image_shape", "channel_mean", "channel_mean_tolerance"}
    other_variants(num_images, split)   a sentence, if another variant has so many images
    at(path)               the same source for a user's own files

The source is read without the task only if every preprocessor of the task has an attribute
`keeps_plain_images`, as those of `tasks.support.registration.add_task` have.

seqio and TensorFlow take seconds to import, so only the functions that need them do.
"""

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from idode_gin import checks
from idode_gin.runtime import image_cache
from idode_gin.runtime.augmentation import Augmentation
from idode_gin.runtime.data import DatasetConfig, ImageSplit
from idode_gin.runtime.image_fingerprints import ImageFingerprint

DEFAULT_MODULE = "tasks"
_READ_CHUNK = 256  # images per TensorFlow call: reading them one by one is ten times slower


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
      ValueError: for an unknown module, task or split (with the nearest name), a mixture with other
        rates, images that `ImageSplit` refuses or that differ in size, and a split that is not what
        it is known to be or `config.fingerprint` asks for.
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
    split = _join(tasks, parts, config)
    if split.augmentation is not None:
        split.augmentation.check(split.image_shape)
    if len(tasks) == 1:
        _check_known(split, _source(tasks[0], config))
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
class _Part:
    """One task's images, and its conditioning if it has any, `[N, ...]` each."""

    images: np.ndarray
    conditioning: np.ndarray | None = None
    fingerprint: ImageFingerprint | None = None


def _source(task: Any, config: DatasetConfig) -> Any:
    """Where a task's images come from, the user's own files included."""
    source = task.source
    if config.data_path is None:
        return source
    if not hasattr(source, "at"):
        raise ValueError(
            f"Task {task.name!r} reads no files of yours, but data_path={config.data_path!r}. "
            "Choose the task image_folder or image_npz, or leave data_path out."
        )
    return source.at(config.data_path)


def _read_task(task: Any, config: DatasetConfig) -> _Part:
    """The images from the cache where the source allows it, otherwise from the task itself."""
    source = _source(task, config)
    plain = getattr(source, "plain", None)
    if not all(getattr(each, "keeps_plain_images", False) for each in task.preprocessors):
        plain = None  # the task makes something else of them
    key = None
    if plain is not None and not config.use_cached and hasattr(plain, "cache_key"):
        key = plain.cache_key(config.split)
    if key is not None and config.cache_dir != "":
        return _from_cache(task, plain, key, config)
    if plain is None or config.use_cached:
        return _read_through_task(task.replace(source=source), config)
    return _Part(images=_whole(_plain_chunks(plain, config.split, str(task.name))))


def _from_cache(task: Any, plain: Any, key: str, config: DatasetConfig) -> _Part:
    known = getattr(plain, "known", lambda split: None)(config.split)
    expected = int(np.prod([known["num_images"], *known["image_shape"]])) if known else 0
    cached = image_cache.load(
        config.cache_dir or image_cache.default_directory(),
        f"{getattr(plain, 'name', task.name)}-{config.split}",
        key,
        lambda: _with_progress(
            _plain_chunks(plain, config.split, str(task.name)),
            f"Decoding {config.split!r} of {task.name!r}, once",
            plain.num_input_examples(config.split),
        ),
        memory_map=config.memory_map,
        expected_bytes=expected,
    )
    return _Part(images=cached.images, fingerprint=cached.fingerprint)


def _plain_chunks(plain: Any, split: str, name: str) -> Iterator[np.ndarray]:
    """The images of a source, integers `[n, H, W, C]`, some at a time."""
    dataset = plain.get_dataset(split=split, shuffle=False)
    chunks = _chunks(dataset.map(lambda example: {"image": example["image"]}), ["image"])
    first = None
    for chunk in chunks:
        images = chunk["image"]
        first = images if first is None else first
        if images.shape[1:] != first.shape[1:] or images.dtype.kind not in "iu":
            raise ValueError(
                f"Every image of split {split!r} of {name!r} must be integers "
                f"{list(first.shape[1:])}, as the first is, got {images.dtype} "
                f"{list(images.shape[1:])}."
            )
        yield images
    if first is None:
        raise ValueError(f"Split {split!r} of task {name!r} is empty.")


def _with_progress(
    chunks: Iterator[np.ndarray], what: str, num_images: int | None
) -> Iterator[np.ndarray]:
    import tqdm

    with tqdm.tqdm(desc=what, total=num_images, unit="image", unit_scale=True, disable=None) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk))


def _read_through_task(task: Any, config: DatasetConfig) -> _Part:
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
    chunks = list(_chunks(dataset.map(lambda example: {key: example[key] for key in keys}), keys))
    if not chunks:
        raise ValueError(f"Split {config.split!r} of task {task.name!r} is empty.")
    merged = {key: _concatenate([chunk[key] for chunk in chunks], key) for key in keys}
    return _Part(images=merged["image"], conditioning=merged.get("conditioning"))


def _chunks(dataset: Any, keys: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    import tensorflow as tf

    spec = dataset.element_spec
    of_one_shape = all(spec[key].shape.is_fully_defined() for key in keys)
    try:
        yield from dataset.batch(_READ_CHUNK if of_one_shape else 1).as_numpy_iterator()
    except tf.errors.OpError as error:
        first_line = (error.message.strip().splitlines() or [""])[0].rpartition("}} ")[2]
        raise ValueError(
            f"An image could not be read: {first_line}. A damaged file, or one of "
            "another shape? Prepare the dataset again, or take the file out."
        ) from error


def _whole(chunks: Iterator[np.ndarray]) -> np.ndarray:
    return _concatenate(list(chunks), "image")


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


def _check_rates(provider: Any, tasks: list[Any], parts: list[_Part]) -> None:
    if len(tasks) < 2:
        return
    sizes = np.array([len(part.images) for part in parts], float)
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


def _join(tasks: list[Any], parts: list[_Part], config: DatasetConfig) -> ImageSplit:
    if len(parts) == 1:
        images = parts[0].images
    else:
        images = _concatenate([part.images for part in parts], "image")
    fingerprint = parts[0].fingerprint if len(parts) == 1 else None
    if images.dtype.kind in "iu" and images.dtype != np.uint8:
        narrow = images.astype(np.int32)  # what a device holds
        images = narrow if np.array_equal(narrow, images) else images
        fingerprint = None
    sources = [_source(task, config) for task in tasks]
    augmentation = config.augmentation or next(
        filter(None, (getattr(each, "augmentation", None) for each in sources)), None
    )
    conditioning = _conditioning(parts, len(images), augmentation, config)
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
        known_fingerprint=fingerprint,
    )


def _conditioning(
    parts: list[_Part], num_images: int, augmentation: Augmentation | None, config: DatasetConfig
) -> np.ndarray:
    """float32 `[N, K]`: the tasks' own, or zeros, which say that nothing was done."""
    given = [part.conditioning for part in parts if part.conditioning is not None]
    if not given:
        size = 1 if augmentation is None else augmentation.conditioning_size
        return np.zeros((num_images, size), np.float32)
    if augmentation is not None:
        raise ValueError(
            f"{config.mixture_or_task_name!r} has a conditioning of its own, which an augmentation "
            "would overwrite. Set augmentation = None."
        )
    if len(given) != len(parts):
        raise ValueError(
            f"Some tasks of {config.mixture_or_task_name!r} have a conditioning and some have not."
        )
    conditioning = _concatenate(given, "conditioning")
    if conditioning.ndim == 1:
        conditioning = conditioning[:, None]
    return conditioning.astype(np.float32)


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
