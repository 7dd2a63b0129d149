"""What every task of images has in common."""

from collections.abc import Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from tasks.support.augmenting import augment
from tasks.support.metrics import BitsPerDim

Length = int | Sequence[int | None] | None


def add_task(name: str, source: seqio.DataSource) -> None:
    """Registers a task that yields the images of `source`; nothing if there is one of that name.

    The task refuses to be cropped, augments where its source says so, and has `BitsPerDim` as its
    metric.
    """
    if name in seqio.TaskRegistry.names():
        return
    features = {"image": seqio.ContinuousFeature(dtype=tf.uint8, rank=3)}
    preprocessors: list[Any] = [refuse_cropping]
    augmentation = getattr(source, "augmentation", None)
    if augmentation is not None:
        features["conditioning"] = seqio.ContinuousFeature(dtype=tf.float32, rank=1)
        preprocessors.append(augment(augmentation))
    for each in preprocessors:
        each.keeps_plain_images = True  # the feed may read them at the source
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=preprocessors,
        output_features=features,
        metric_objs=[BitsPerDim.empty()],
    )


def refuse_cropping(
    dataset: tf.data.Dataset, sequence_length: Mapping[str, Length] | None = None
) -> tf.data.Dataset:
    """A preprocessor that changes nothing: seqio cuts features to their lengths right after it.

    Raises:
        ValueError: if `sequence_length` differs from the image's shape.
    """
    check_length("image", dataset.element_spec["image"].shape, sequence_length or {})
    return dataset


def check_length(feature: str, shape: tf.TensorShape, lengths: Mapping[str, Length]) -> None:
    """Raises ValueError if the length given for a feature would cut it, or is more than it has."""
    length = lengths.get(feature)
    given = [length] if isinstance(length, int) else list(length or ())
    fits = len(given) <= len(shape) and all(
        limit is None or limit == size for limit, size in zip(given, shape, strict=False)
    )
    if not fits:
        raise ValueError(
            f'`task_feature_lengths` must not change an image: "{feature}" is {list(shape)}, got '
            f"{length!r}, and seqio would crop to that without a word. Leave {feature!r} out, or "
            f"give {shape[0]} or {tuple(shape)}."
        )
