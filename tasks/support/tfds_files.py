"""One split of a dataset on disk in the format of TensorFlow Datasets.

It is read without the code that built it.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any, final

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from idode_gin.feed import labels
from idode_gin.feed.image_fingerprints import RECORD, RESIZING, SPLITTING, ImageFingerprint

INFO = "dataset_info.json"
DESCRIPTION = (INFO, "features.json")
_LABELS = 4096  # read at one time


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsFiles:
    """One split of the dataset in a folder.

    Args:
        folder: holds `dataset_info.json`, `features.json` and the shards.
        split: one of its splits.
        name: of the dataset, for messages.
        remedy: a sentence that says what to do about bad files.
    Raises, by all but `is_partial`, `changes` and `check_recorded`:
        ValueError: if the folder cannot be read as a dataset with this split, or lacks files.
    """

    folder: pathlib.Path
    split: str
    name: str
    remedy: str

    @property
    def num_images(self) -> int:
        """N, according to the description."""
        return int(self._opened().info.splits[self.split].num_examples)

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """(height, width, channels); None where the description leaves one open."""
        return tuple(self._opened().info.features["image"].shape)

    @property
    def is_partial(self) -> bool:
        """True if it was prepared with `--allow_partial`."""
        try:
            metadata = json.loads((self.folder / "metadata.json").read_text())
        except (OSError, ValueError):
            return False
        return isinstance(metadata, dict) and metadata.get("partial") is True

    @property
    def changes(self) -> list[str]:
        """Changes that `tasks.prepare` made: to pixels, then to splits."""
        try:
            recorded = json.loads((self.folder / RECORD).read_text())
        except (OSError, ValueError):
            return []
        known = recorded if isinstance(recorded, dict) else {}
        return [str(known[key]) for key in (RESIZING, SPLITTING) if key in known]

    def check_recorded(self, found: ImageFingerprint) -> None:
        """Raise ValueError unless the decoded split is the one that was prepared.

        Datasets made by other programs have no record; nothing is compared then.
        """
        path = self.folder / RECORD
        try:
            recorded = ImageFingerprint.from_dict(json.loads(path.read_text())[self.split])
        except FileNotFoundError:
            return
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} cannot be read as the fingerprint of split {self.split!r} "
                f"({type(error).__name__}: {error}). {self.remedy}"
            ) from error
        for field in ("num_images", "image_shape", "sha256"):
            expected, got = getattr(recorded, field), getattr(found, field)
            if got != expected:
                raise ValueError(
                    f"Split {self.split!r} of {self.name} changed on disk since it was prepared: "
                    f"{path} records {field} {expected}, the files decode to {got}. {self.remedy}"
                )

    def shards(self) -> list[pathlib.Path]:
        """Return the files of the split; raise ValueError if one is missing."""
        paths = [pathlib.Path(each) for each in self._opened().info.splits[self.split].filepaths]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise ValueError(
                f"{self.name} lacks {len(missing)} of the {len(paths)} files of {self.split!r}, "
                f"first {missing[0]}. {self.remedy}"
            )
        return paths

    def facts(self) -> list[Any]:
        """Return a digest of the description, and each shard's name, size and time of change."""
        info = hashlib.sha256((self.folder / INFO).read_bytes()).hexdigest()
        shards = [(path.name, path.stat()) for path in self.shards()]
        return [info, self.split, [(name, each.st_size, each.st_mtime_ns) for name, each in shards]]

    def dataset(
        self, *, shuffle: bool, seed: int | None, shard_info: seqio.ShardInfo | None
    ) -> tf.data.Dataset:
        """Return dicts with "image" alone, file by file; `shuffle` mixes the files."""
        self.shards()
        builder = self._opened()
        config = tfds.ReadConfig(
            shuffle_seed=seed,
            skip_prefetch=True,
            try_autocache=False,
            interleave_cycle_length=16 if shuffle else 1,
            input_context=shard_info
            and tf.distribute.InputContext(
                num_input_pipelines=shard_info.num_shards, input_pipeline_id=shard_info.index
            ),
        )
        dataset = builder.as_dataset(split=self.split, shuffle_files=shuffle, read_config=config)
        return dataset.map(lambda example: {"image": example["image"]})

    def labels(self, num_classes: int) -> np.ndarray | None:
        """Return the feature "label" of each image, integers `[N]` in order; None without one.

        Raises:
            ValueError: if it has another number of classes.
        """
        builder = self._opened()
        if "label" not in builder.info.features:
            return None
        known = builder.info.features["label"]
        if (count := getattr(known, "num_classes", num_classes)) != num_classes:
            raise ValueError(
                f"{self.name} has {labels.among(count, self.class_names())}, but the model is "
                f"conditioned on one of {num_classes}. Set NUM_CLASSES = {count}."
            )
        encoded = {"image": tfds.decode.SkipDecoding()}
        config = tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1)
        dataset = builder.as_dataset(split=self.split, read_config=config, decoders=encoded)
        chunks = dataset.map(lambda example: example["label"]).batch(_LABELS)
        return np.concatenate(list(chunks.as_numpy_iterator()))

    def class_names(self) -> list[str]:
        """Return the names of the feature "label", by number; empty without one."""
        features = self._opened().info.features
        return list(getattr(features["label"], "names", ())) if "label" in features else []

    def _opened(self) -> tfds.core.DatasetBuilder:
        try:
            _check_types(json.loads((self.folder / "features.json").read_text(encoding="utf-8")))
            builder = tfds.builder_from_directory(str(self.folder))
        except Exception as error:  # its parsers raise many types for a damaged description
            raise ValueError(
                f"{self.name} in {self.folder} cannot be opened: {error}. {self.remedy}"
            ) from error
        if self.split not in builder.info.splits:
            held = ", ".join(sorted(builder.info.splits)) or "none"
            raise ValueError(
                f"{self.name} in {self.folder} has no split {self.split!r}; its splits: {held}."
            )
        if "image" not in builder.info.features:
            raise ValueError(f'{self.name} in {self.folder} must have a feature "image".')
        return builder


def _check_types(features: Any) -> None:
    """Raise ValueError if a description names a class outside TFDS, which would be imported."""
    if isinstance(features, list):
        features = dict(enumerate(features))
    if not isinstance(features, dict):
        return
    for key, value in features.items():
        is_name = key in ("type", "pythonClassName") and isinstance(value, str)
        if is_name and not value.startswith("tensorflow_datasets.core.features."):
            raise ValueError(f"features.json names {value!r}, which is no feature of TFDS's own")
        _check_types(value)
