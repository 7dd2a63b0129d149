"""Small datasets on disk, written by TensorFlow Datasets, of images known to the tests."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np


def random_images(num_images: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Return uint8 `[N, H, W, C]`, no two alike."""
    return np.random.default_rng(seed).integers(0, 256, (num_images, *shape)).astype(np.uint8)


def write(
    root: pathlib.Path,
    tfds_name: str,
    splits: Mapping[str, np.ndarray],
    *,
    static: bool = True,
    num_shards: int | None = None,
) -> pathlib.Path:
    """Write `<root>/<name>[/<config>]/<version>` and return it.

    Args:
        root: the data directory.
        tfds_name: "<name>[/<config>]:<version>".
        splits: images of each split.
        static: declare the images' size in `features.json`.
        num_shards: files per split; None is TFDS's choice, one.
    """
    import tensorflow_datasets as tfds

    full_name, version = tfds_name.split(":")
    dataset_name, _, config = full_name.partition("/")
    shape = next(iter(splits.values())).shape[1:]

    class Fake(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset_name
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []  # noqa: RUF012

        def _info(self):
            image = tfds.features.Image(shape=shape if static else (None, None, shape[2]))
            label = tfds.features.ClassLabel(num_classes=10)
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._examples(images) for split, images in splits.items()}

        def _generate_examples(self):  # abstract; each split has its own
            raise NotImplementedError

        def _examples(self, images):
            for index, image in enumerate(images):
                yield index, {"image": image, "label": index % 10}

    builder = Fake(data_dir=str(root), **({"config": config} if config else {}))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=num_shards)
    )
    return pathlib.Path(builder.data_dir)


def with_counts(variant, splits: Mapping[str, np.ndarray]):
    """Return the variant with the numbers of images of these splits, and no known mean."""
    sizes = {split: len(images) for split, images in splits.items()}
    return dataclasses.replace(variant, sizes=sizes, train_mean=None)


@contextlib.contextmanager
def data_dir(root: pathlib.Path) -> Iterator[None]:
    """Set the data directory as `--tfds_data_dir` does; restore it afterwards."""
    import seqio

    seqio.set_tfds_data_dir_override(str(root))
    try:
        yield
    finally:
        seqio.set_tfds_data_dir_override(None)


@contextlib.contextmanager
def task(name: str, source) -> Iterator[str]:
    """Register a task of the source within a context."""
    import seqio

    from tasks.support.registration import add_task

    add_task(name, source)
    try:
        yield name
    finally:
        seqio.TaskRegistry.remove(name)


def images_of(dataset) -> np.ndarray:
    """Return all images of a seqio dataset, in its order."""
    return np.stack([example["image"] for example in dataset.as_numpy_iterator()])


def sorted_images(images: np.ndarray) -> np.ndarray:
    """Return the images sorted by their pixels, for comparisons in any order."""
    flat = images.reshape(len(images), -1)
    return flat[np.lexsort(flat.T)]
