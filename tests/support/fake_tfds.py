"""Small datasets on disk, laid out by TensorFlow Datasets itself, of images that tests know."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np


def random_images(num_images: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """uint8 `[N, H, W, C]`, no two alike."""
    return np.random.default_rng(seed).integers(0, 256, (num_images, *shape)).astype(np.uint8)


def write(
    root: pathlib.Path,
    tfds_name: str,
    splits: Mapping[str, np.ndarray],
    *,
    static: bool = True,
    num_shards: int | None = None,
) -> pathlib.Path:
    """Writes `<root>/<name>[/<config>]/<version>` and returns it.

    Args:
        root: the data directory.
        tfds_name: "<name>[/<config>]:<version>".
        splits: images of each split.
        static: whether `features.json` says their size.
        num_shards: files per split; None leaves it to TFDS, which makes one.
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
    """What `--tfds_data_dir` does, undone afterwards."""
    import seqio

    seqio.set_tfds_data_dir_override(str(root))
    try:
        yield
    finally:
        seqio.set_tfds_data_dir_override(None)


@contextlib.contextmanager
def task(name: str, source) -> Iterator[str]:
    """A task of the source, registered for a while."""
    import seqio

    from tasks.support.registration import add_task

    add_task(name, source)
    try:
        yield name
    finally:
        seqio.TaskRegistry.remove(name)


def images_of(dataset) -> np.ndarray:
    """All images of a seqio dataset, in its order."""
    return np.stack([example["image"] for example in dataset.as_numpy_iterator()])


def sorted_images(images: np.ndarray) -> np.ndarray:
    """In an order of their own, to compare what may come in any."""
    flat = images.reshape(len(images), -1)
    return flat[np.lexsort(flat.T)]
