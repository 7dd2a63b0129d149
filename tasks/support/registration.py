"""Registering a source of images as a seqio task."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import seqio
import tensorflow as tf

from idode_gin.feed.sources import KeepsImages
from tasks.support.augmenting import Augment
from tasks.support.metrics import BitsPerDim
from tasks.support.sources import AbstractImages

Length = int | Sequence[int | None] | None


def add_task(name: str, source: AbstractImages) -> None:
    """Register a task that yields the images of `source`, unless there is one of that name.

    The task refuses to be cropped, augments what its source marks, and has `BitsPerDim` as its
    metric.
    """
    if name in seqio.TaskRegistry.names():
        return
    features = {"image": seqio.ContinuousFeature(dtype=tf.uint8, rank=3)}
    preprocessors: list[Any] = [RefuseCropping()]
    if source.augmentation is not None:
        features["conditioning"] = seqio.ContinuousFeature(dtype=tf.float32, rank=1)
        preprocessors.append(Augment(source.augmentation))
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=preprocessors,
        output_features=features,
        metric_objs=[BitsPerDim.empty()],
    )


@final
class RefuseCropping(KeepsImages):
    """A preprocessor that only checks: seqio cuts features to their lengths right after it."""

    def __call__(
        self, dataset: tf.data.Dataset, sequence_length: Mapping[str, Length] | None = None
    ) -> tf.data.Dataset:
        """Return the dataset; raise ValueError if a length differs from the image's shape."""
        check_length("image", dataset.element_spec["image"].shape, sequence_length or {})
        return dataset


def check_length(feature: str, shape: tf.TensorShape, lengths: Mapping[str, Length]) -> None:
    """Raise ValueError unless the length given for a feature, if any, is that of its shape."""
    length = lengths.get(feature)
    given = [length] if isinstance(length, int) else list(length or ())
    fits = len(given) <= len(shape) and all(
        limit is None or limit == size for limit, size in zip(given, shape, strict=False)
    )
    if not fits:
        raise ValueError(
            f'`task_feature_lengths` must not change an image: "{feature}" is {list(shape)}, got '
            f"{length!r}, and seqio would silently crop to that. Leave {feature!r} out, or "
            f"give {shape[0]} or {tuple(shape)}."
        )
