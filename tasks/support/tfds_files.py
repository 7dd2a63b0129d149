"""Datasets on disk in the format of TensorFlow Datasets, read without the code that built them."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any, final

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

INFO = "dataset_info.json"
DESCRIPTION = (INFO, "features.json")


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsFiles:
    """One split of the dataset in a folder.

    Args:
        folder: which holds `dataset_info.json`, `features.json` and the shards.
        split: one of its splits.
        name: of the dataset, for messages.
        remedy: what to do where files of it are no good, a sentence.
    Raises, by all but `is_partial`:
        ValueError: if the folder cannot be read as a dataset with this split, or lacks files.
    """

    folder: pathlib.Path
    split: str
    name: str
    remedy: str

    @property
    def num_images(self) -> int:
        """N, as the description says."""
        return int(self._opened().info.splits[self.split].num_examples)

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """(height, width, channels), None where the description does not say it."""
        return tuple(self._opened().info.features["image"].shape)

    @property
    def is_partial(self) -> bool:
        """Whether it was prepared from a part of the publisher's files, knowingly."""
        try:
            metadata = json.loads((self.folder / "metadata.json").read_text())
        except (OSError, ValueError):
            return False
        return isinstance(metadata, dict) and metadata.get("partial") is True

    def shards(self) -> list[pathlib.Path]:
        """The files that hold the split, checked to be there."""
        paths = [pathlib.Path(each) for each in self._opened().info.splits[self.split].filepaths]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise ValueError(
                f"{self.name} lacks {len(missing)} of the {len(paths)} files of {self.split!r}, "
                f"first {missing[0]}. {self.remedy}"
            )
        return paths

    def facts(self) -> list[Any]:
        """What identifies the bytes: hash of the description, names and sizes of the shards."""
        info = hashlib.sha256((self.folder / INFO).read_bytes()).hexdigest()
        return [info, self.split, [(path.name, path.stat().st_size) for path in self.shards()]]

    def dataset(
        self, *, shuffle: bool, seed: int | None, shard_info: seqio.ShardInfo | None
    ) -> tf.data.Dataset:
        """Dicts with "image" and nothing else, file by file; `shuffle` mixes the files."""
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
        image = tfds.decode.PartialDecoding({"image": builder.info.features["image"]})
        return builder.as_dataset(
            split=self.split, shuffle_files=shuffle, read_config=config, decoders=image
        )

    def _opened(self) -> tfds.core.DatasetBuilder:
        try:
            builder = tfds.builder_from_directory(str(self.folder))
        except Exception as error:  # whatever its parsers make of a damaged description
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
