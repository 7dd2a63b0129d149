"""Datasets that can be prepared: their places on disk, and their published contents."""

import dataclasses
from collections.abc import Mapping
from typing import final

from tasks.formats import published


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset in TFDS's terms.

    Attributes:
        title: for messages.
        name: TFDS's name, the first folder.
        config: the second folder, or None.
        version: the last folder.
        image_shape: (H, W, C); zeros until a user's own images are read.
        sizes: number of images of each split; empty where any number is right.
        sources: the files to download, for messages.
    """

    title: str
    name: str
    config: str | None = None
    version: str = "2.0.0"
    image_shape: tuple[int, int, int]
    sizes: Mapping[str, int]
    sources: str

    @property
    def folder(self) -> str:
        """Place below the data directory."""
        return "/".join(filter(None, (self.name, self.config, self.version)))


OLD_SIZES = published.OLD_IMAGENET_SIZES
NEW_SIZES = published.NEW_IMAGENET_SIZES


def _published(variant: published.Variant, title: str, sources: str) -> Dataset:
    names, version = variant.tfds_name.split(":")
    name, _, config = names.partition("/")
    return Dataset(
        title=title,
        name=name,
        config=config or None,
        version=version,
        image_shape=variant.image_shape,
        sizes=variant.sizes,
        sources=sources,
    )


def _old(variant: published.Variant) -> Dataset:
    size = variant.image_shape[0]
    return _published(
        variant,
        f"the old downsampled ImageNet {size}x{size} (van den Oord et al.)",
        f"train_{size}x{size}.tar and valid_{size}x{size}.tar, PNG files in a folder",
    )


def _new(variant: published.Variant) -> Dataset:
    size = variant.image_shape[0]
    train = "train" if size == 32 else "train_part1, train_part2"
    return _published(
        variant,
        f"the new downsampled ImageNet {size}x{size} (Chrabaszcz et al.)",
        f"Imagenet{size}_{{{train}, val}}.zip (members train_data_batch_1 to _10, val_data), "
        f"the same with _npz, their extracted folders, or the ready tfrecords "
        f"downsampled_imagenet_new/{size}x{size}/2.0.0",
    )


CIFAR10 = _published(
    published.CIFAR10,
    "CIFAR-10",
    "cifar-10-python.tar.gz (members data_batch_1 to _5, test_batch and batches.meta), "
    "cifar-10-binary.tar.gz (the same with .bin, and batches.meta.txt), or either's folder",
)

_IDX_FILES = (
    "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
    "t10k-labels-idx1-ubyte.gz, or a folder of them"
)

DATASETS: dict[str, Dataset] = {
    "cifar10": CIFAR10,
    "mnist": _published(published.MNIST, "MNIST", _IDX_FILES),
    "fashion_mnist": _published(published.FASHION_MNIST, "Fashion-MNIST", _IDX_FILES),
    "imagenet32_old": _old(published.IMAGENET32_OLD),
    "imagenet32_new": _new(published.IMAGENET32_NEW),
    "imagenet64_old": _old(published.IMAGENET64_OLD),
    "imagenet64_new": _new(published.IMAGENET64_NEW),
}


def image_folder(name: str) -> Dataset:
    """Return the dataset of a user's own images, under a name of their choice."""
    return Dataset(
        title=f"the images {name!r}",
        name="image_folder",
        config=name,
        version="1.0.0",
        image_shape=(0, 0, 0),
        sizes={},
        sources="a folder with sub-folders train, validation, test (at least train or test)",
    )
