"""Datasets that can be prepared: their places on disk, and their published contents."""

import dataclasses
from collections.abc import Mapping
from typing import final


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


OLD_SIZES = {"train": 1_281_149, "validation": 49_999}
NEW_SIZES = {"train": 1_281_167, "validation": 50_000}


def _old(size: int) -> Dataset:
    return Dataset(
        title=f"the old downsampled ImageNet {size}x{size} (van den Oord et al.)",
        name="downsampled_imagenet",
        config=f"{size}x{size}",
        image_shape=(size, size, 3),
        sizes=OLD_SIZES,
        sources=f"train_{size}x{size}.tar and valid_{size}x{size}.tar, PNG files in a folder",
    )


def _new(size: int) -> Dataset:
    train = "train" if size == 32 else "train_part1, train_part2"
    return Dataset(
        title=f"the new downsampled ImageNet {size}x{size} (Chrabaszcz et al.)",
        name="downsampled_imagenet_new",
        config=f"{size}x{size}",
        image_shape=(size, size, 3),
        sizes=NEW_SIZES,
        sources=(
            f"Imagenet{size}_{{{train}, val}}.zip (members train_data_batch_1 to _10, val_data), "
            f"the same with _npz, their extracted folders, or the ready tfrecords "
            f"downsampled_imagenet_new/{size}x{size}/2.0.0"
        ),
    )


CIFAR10 = Dataset(
    title="CIFAR-10",
    name="cifar10",
    version="3.0.2",
    image_shape=(32, 32, 3),
    sizes={"train": 50_000, "test": 10_000},
    sources=(
        "cifar-10-python.tar.gz (members data_batch_1 to _5, test_batch and batches.meta), "
        "cifar-10-binary.tar.gz (the same with .bin, and batches.meta.txt), or either's folder"
    ),
)

DATASETS: dict[str, Dataset] = {
    "cifar10": CIFAR10,
    "imagenet32_old": _old(32),
    "imagenet32_new": _new(32),
    "imagenet64_old": _old(64),
    "imagenet64_new": _new(64),
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
