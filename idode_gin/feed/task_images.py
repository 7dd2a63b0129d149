"""One task's images, some at a time: from its source where that is possible, else through the task.

Beside seqio's own contract a task's source may have any of

    plain                  the source of the images as they are, without augmentation
    augmentation           what training does to them, an `Augmentation`
    variant                which of the published variants it is, in words
    array(split)           the split as one array, or None where it has to be gathered
    cache_key(split)       hex digest of the files the split is decoded from; None: not cached
    known(split)           {"num_images", "image_shape", "channel_mean", "channel_mean_tolerance"}
    check_recorded(split, fingerprint)  ValueError unless the decoded images are those recorded
    other_variants(num_images, split)   a sentence, if another variant has so many images
    at(path)               the same source for a user's own files

The source is read without the task only if every preprocessor of the task has an attribute
`keeps_plain_images`, as those of `tasks.support.registration.add_task` have.

seqio and TensorFlow take seconds to import, so only the functions that need them do.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from idode_gin.feed.data import DatasetConfig

_READ_CHUNK = 256  # images per TensorFlow call: reading them one by one is ten times slower


def source_of(task: Any, config: DatasetConfig) -> Any:
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


def plain_source(task: Any, config: DatasetConfig) -> Any:
    """The source of a task's images, if they can be read without the task; None otherwise."""
    if config.use_cached:
        return None
    if not all(getattr(each, "keeps_plain_images", False) for each in task.preprocessors):
        return None  # the task makes something else of them
    return getattr(source_of(task, config), "plain", None)


Chunk = dict[str, np.ndarray]
"""Some examples, `[n, ...]` by feature."""


def array_of(plain: Any, split: str) -> np.ndarray | None:
    """The split of a plain source as one array, if that is how it is kept."""
    return plain.array(split) if hasattr(plain, "array") else None


def plain_chunks(plain: Any, split: str, name: str) -> Iterator[Chunk]:
    """The images of a source, integers `[n, H, W, C]`, some at a time."""
    array = array_of(plain, split)
    if array is None:
        dataset = plain.get_dataset(split=split, shuffle=False)
        chunks = _chunks(dataset.map(lambda example: {"image": example["image"]}), ["image"])
    else:
        starts = range(0, len(array), _READ_CHUNK)
        chunks = ({"image": array[at : at + _READ_CHUNK]} for at in starts)
    first = None
    for chunk in chunks:
        images = chunk["image"]
        first = images[:0] if first is None else first
        if images.shape[1:] != first.shape[1:] or images.dtype.kind not in "iu":
            raise ValueError(
                f"Every image of split {split!r} of {name!r} must be integers "
                f"{list(first.shape[1:])}, as the first is, got {images.dtype} "
                f"{list(images.shape[1:])}."
            )
        yield chunk
    if first is None:
        raise ValueError(f"Split {split!r} of task {name!r} is empty.")


def chunks_through_task(task: Any, config: DatasetConfig) -> Iterator[Chunk]:
    """One task's "image" and, if it has it, "conditioning", some at a time."""
    if config.use_cached and not task.supports_caching:
        raise ValueError(
            f"Task {task.name!r} cannot be cached by seqio, but use_cached=True. Leave it at "
            "False: images are kept in a cache of their own, see DatasetConfig.cache_dir."
        )
    if config.use_cached and not task.cache_dir:
        raise ValueError(
            f"Task {task.name!r} is in none of the seqio cache folders that were given, but "
            "use_cached=True. Cache it, name its folder, or set use_cached=False."
        )
    dataset = task.replace(source=source_of(task, config)).get_dataset(
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
    is_empty = True
    for chunk in _chunks(dataset.map(lambda example: {key: example[key] for key in keys}), keys):
        is_empty = False
        yield chunk
    if is_empty:
        raise ValueError(f"Split {config.split!r} of task {task.name!r} is empty.")


def _chunks(dataset: Any, keys: Sequence[str]) -> Iterator[Chunk]:
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
