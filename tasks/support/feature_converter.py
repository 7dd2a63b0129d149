"""Converter of task features for seqio's and t5x's own loops; it neither cuts nor pads."""

from collections.abc import Mapping
from typing import Any, TypeAlias, final

import seqio
import tensorflow as tf

from tasks.support.registration import Length, check_length

Spec: TypeAlias = seqio.FeatureConverter.FeatureSpec


@final
class ImageFeatureConverter(seqio.FeatureConverter):
    """Images, uint8 `[H, W, C]`, and their conditioning, float32 `[K]`, as the task yields them.

    A task without conditioning gets zeros `[1]`. Images cannot be packed: `pack` and the other
    options of seqio's converters are accepted and ignored.

    Raises, when called:
        ValueError: for features of another dtype or rank or of unknown shape, and for lengths that
            differ from the image's shape or name another feature. `batch` of the result raises it
            if the last images of an epoch would be dropped, or might be, as their number is
            unknown.
    """

    TASK_FEATURES = {
        "image": Spec(dtype=tf.uint8, rank=3),
        "conditioning": Spec(dtype=tf.float32, rank=1),
    }
    MODEL_FEATURES = TASK_FEATURES
    PACKING_FEATURE_DTYPES: Mapping[str, tf.DType] = {}

    def __init__(
        self,
        pack: bool = True,
        use_custom_packing_ops: bool = False,
        apply_length_check: bool = True,
        bos_id: int = 0,
        passthrough_features: Mapping[str, Spec] | None = None,
    ) -> None:
        del pack, use_custom_packing_ops, apply_length_check
        super().__init__(
            pack=False,
            apply_length_check=False,  # shapes are static: checked here, before any image is read
            bos_id=bos_id,
            passthrough_features=passthrough_features,
        )

    def __call__(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, Length] | None = None
    ) -> tf.data.Dataset:
        """Return the converted dataset, not batched."""
        lengths = dict(task_feature_lengths or {})
        unknown = set(lengths) - set(self.TASK_FEATURES) - set(self._passthrough_features)
        if unknown:
            raise ValueError(
                f"`task_feature_lengths` names {', '.join(map(repr, sorted(unknown)))}, but images "
                f"have only {', '.join(map(repr, self.TASK_FEATURES))}, and need no lengths."
            )
        for feature, spec in self.TASK_FEATURES.items():
            _check_feature(feature, spec, ds.element_spec)
            if feature in ds.element_spec:
                check_length(feature, ds.element_spec[feature].shape, lengths)
        return _refuse_dropping(self._convert_features(ds, lengths))

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, Length]
    ) -> tf.data.Dataset:
        kept = [
            *(each for each in self.TASK_FEATURES if each in ds.element_spec),
            *self._passthrough_features,
        ]

        def convert(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            none = {"conditioning": tf.zeros([1], tf.float32)}
            return {**none, **{feature: example[feature] for feature in kept}}

        return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

    def get_model_feature_lengths(
        self, task_feature_lengths: Mapping[str, Length]
    ) -> Mapping[str, Length]:
        """Return the same lengths, with 1 for the conditioning unless given."""
        return {"conditioning": 1, **task_feature_lengths}


def _check_feature(feature: str, wanted: Spec, specs: Mapping[str, Any]) -> None:
    if feature not in specs:
        if feature == "image":
            raise ValueError(f'A task of images must yield "image", got {", ".join(specs)}.')
        return
    dtype, shape = specs[feature].dtype, specs[feature].shape
    if dtype == wanted.dtype and shape.rank == wanted.rank and shape.is_fully_defined():
        return
    hint = "Use tf.ensure_shape." if shape.rank == wanted.rank else ""
    if shape.rank == 0:
        hint = "Give a single number the shape [1]: seqio's Evaluator cannot measure a scalar."
    raise ValueError(
        f'"{feature}" must be {wanted.dtype.name} of rank {wanted.rank} and of static shape, got '
        f"{dtype.name} {shape}. {hint}".rstrip()
    )


def _refuse_dropping(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return the dataset with a `batch` that raises ValueError if it would drop images of an epoch.

    `seqio.get_dataset(batch_size=...)` silently passes drop_remainder=True.
    """
    batch = dataset.batch

    def batch_all(batch_size: int, drop_remainder: bool = False, **kwargs: Any) -> tf.data.Dataset:
        num_images = int(dataset.cardinality())
        if drop_remainder and num_images == tf.data.UNKNOWN_CARDINALITY:
            raise ValueError(
                f"The dataset's number of images is unknown, so batches of {int(batch_size)} "
                "might drop the last ones. Declare it with dataset.apply("
                "tf.data.experimental.assert_cardinality(N)) in the task's last preprocessor, use "
                "num_epochs=None to train, or leave `batch_size` out and call .batch(...) on the "
                "result yourself."
            )
        left = num_images % int(batch_size) if num_images > 0 else 0  # negative: endless
        if drop_remainder and left:
            raise ValueError(
                f"Batches of {int(batch_size)} would drop the last {left} of {num_images} images. "
                "Use a batch size that divides them, num_epochs=None to train, or leave "
                "`batch_size` out and call .batch(...) on the result yourself."
            )
        return batch(batch_size, drop_remainder=drop_remainder, **kwargs)

    dataset.batch = batch_all
    return dataset
