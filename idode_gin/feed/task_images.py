"""One split of one seqio task, some images at a time.

Read from the task's source if that is an `ImageSource` and every preprocessor a `KeepsImages`;
otherwise through the task. seqio and TensorFlow take seconds to import, so only the functions that
need them do.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, final

import numpy as np

from idode_gin.feed.data import DatasetConfig
from idode_gin.feed.sources import ImageSource, KeepsImages

_READ_CHUNK = 256  # images per TensorFlow call: reading them one by one is ten times slower

_IN_CACHES = ("int32", "int64", "float32", "bool")
"""Types of numbers that seqio can read from its TFRecord files."""

Chunk = dict[str, np.ndarray]
"""Some examples, `[n, ...]` by feature."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSplit:
    """One split of one task.

    Attributes:
        task: the seqio task, over the user's files if there is a `data_path`.
        split: name of the split.
        use_cached: read seqio's offline cache of the task.
        facts: the task's source if it is an `ImageSource`, else None.
        source: the source to read without the task; None: read through the task.
    """

    task: Any
    split: str
    use_cached: bool
    facts: ImageSource | None
    source: ImageSource | None

    @property
    def name(self) -> str:
        """Name of the task."""
        return str(self.task.name)

    def chunks(self) -> Iterator[Chunk]:
        """Yield "image", `[n, H, W, C]`, and "conditioning", `[n, K]`, if the task has one.

        Raises:
            ValueError: if there are no images, one cannot be read, or one read from a source is
                not of integers or differs in shape from the first.
        """
        chunks = _from_task(self) if self.source is None else _from_source(self, self.source)
        first = next(chunks, None)
        if first is None:
            raise ValueError(f"Split {self.split!r} of task {self.name!r} is empty.")
        yield first
        yield from chunks

    def labels(self, num_classes: int) -> np.ndarray | None:
        """Return the class of each image, integers `[N]` or `[N, 1]`; None if the task has none.

        Raises:
            ValueError: if the source knows another number of classes.
        """
        if self.source is not None:
            return self.source.labels(self.split, num_classes)
        dataset = _dataset_of(self)
        if "label" not in dataset.element_spec:
            return None
        labels = dataset.map(lambda example: {"label": example["label"]})
        return np.concatenate([chunk["label"] for chunk in _chunks(labels, ["label"])])

    def class_names(self) -> tuple[str, ...]:
        """Return the name of each class; empty if they have none that the source knows."""
        return () if self.source is None else tuple(self.source.class_names(self.split))


def open_split(task: Any, config: DatasetConfig) -> TaskSplit:
    """Return the configured split of a task; nothing is read yet.

    Raises:
        ValueError: if there is a `data_path`, and the task reads no files of the user's.
    """
    source = task.source
    if config.data_path is not None:
        source = source.at(config.data_path) if isinstance(source, ImageSource) else None
        if source is None:
            raise ValueError(
                f"Task {task.name!r} reads no files of yours, but data_path={config.data_path!r}. "
                "Choose the task image_folder or image_npz, or leave data_path out."
            )
        task = task.replace(source=source)
    facts = source if isinstance(source, ImageSource) else None
    is_plain = all(isinstance(each, KeepsImages) for each in task.preprocessors)
    return TaskSplit(
        task=task,
        split=config.split,
        use_cached=config.use_cached,
        facts=facts,
        source=facts if is_plain and not config.use_cached else None,
    )


def _from_source(part: TaskSplit, source: ImageSource) -> Iterator[Chunk]:
    array, chunks = source.array(part.split), None
    if array is None:
        dataset = source.get_dataset(split=part.split, shuffle=False)
        chunks = _chunks(dataset.map(lambda example: {"image": example["image"]}), ["image"])
    else:
        starts = range(0, len(array), _READ_CHUNK)
        chunks = ({"image": array[at : at + _READ_CHUNK]} for at in starts)
    shape = None
    for chunk in chunks:
        images = chunk["image"]
        shape = shape or images.shape[1:]
        if images.shape[1:] != shape or images.dtype.kind not in "iu":
            raise ValueError(
                f"Every image of split {part.split!r} of {part.name!r} must be integers "
                f"{list(shape)}, as the first is, got {images.dtype} {list(images.shape[1:])}."
            )
        yield chunk


def _from_task(part: TaskSplit) -> Iterator[Chunk]:
    dataset = _dataset_of(part)
    spec = dataset.element_spec
    if "image" not in spec:
        raise ValueError(
            f'Task {part.name!r} must yield an "image" feature, got {", ".join(sorted(spec))}. '
            "Rename it in the task's preprocessors."
        )
    keys = [key for key in ("image", "conditioning") if key in spec]
    return _chunks(dataset.map(lambda example: {key: example[key] for key in keys}), keys)


def _dataset_of(part: TaskSplit) -> Any:
    """Return the examples of the task, each once and in order, as a `tf.data.Dataset`."""
    task = part.task
    if part.use_cached and not task.supports_caching:
        raise ValueError(
            f"Task {task.name!r} cannot be cached by seqio, but use_cached=True. Leave it at "
            "False: images are kept in a cache of their own, see DatasetConfig.cache_dir."
        )
    image = task.output_features.get("image")
    if part.use_cached and image is not None and (dtype := _name(image.dtype)) not in _IN_CACHES:
        raise ValueError(
            f"seqio's offline cache holds numbers of {', '.join(_IN_CACHES)}, and those of the "
            f"task {task.name!r} are {dtype}, but use_cached=True. Leave it at False: images are "
            "kept in a cache of their own, see DatasetConfig.cache_dir."
        )
    if part.use_cached and not task.cache_dir:
        raise ValueError(
            f"Task {task.name!r} is in none of the seqio cache folders that were given, but "
            "use_cached=True. Cache it, name its folder, or set use_cached=False."
        )
    return task.get_dataset(
        sequence_length=None,  # any length would crop the images
        split=part.split,
        use_cached=part.use_cached,
        shuffle=False,
        num_epochs=1,
        try_in_mem_cache=False,
    )


def _name(dtype: Any) -> str:
    """Return the name of a type of TensorFlow, or of one that it knows by another name."""
    import tensorflow as tf

    return str(tf.as_dtype(dtype).name)


def _chunks(dataset: Any, keys: Sequence[str]) -> Iterator[Chunk]:
    import tensorflow as tf

    spec = dataset.element_spec
    of_one_shape = all(spec[key].shape.is_fully_defined() for key in keys)
    try:
        yield from dataset.batch(_READ_CHUNK if of_one_shape else 1).as_numpy_iterator()
    except tf.errors.OpError as error:
        first_line = (error.message.strip().splitlines() or [""])[0].rpartition("}} ")[2]
        if own := first_line.partition("ValueError: ")[2]:  # raised by the source's reader
            raise ValueError(own) from error
        raise ValueError(
            f"An image could not be read: {first_line}. Prepare the dataset again, or remove the "
            "file if it is damaged or its image has another shape."
        ) from error
