"""Published datasets that are easily mistaken for one another, and the facts that tell them apart.

Old and new downsampled ImageNet show the same photographs, but differ by a quarter of a bit per
dim. Their numbers of images distinguish them.
"""

import dataclasses
from collections.abc import Mapping
from typing import final

from idode_gin.feed.sources import ChannelMean, KnownSplit


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One dataset in the format of TensorFlow Datasets.

    Attributes:
        name: its name for `tasks.prepare`, and the first task that reads it.
        label: authors or method, for readers.
        tfds_name: "<dataset>[/<config>]:<version>".
        image_shape: (height, width, channels).
        sizes: number of images of each split.
        archives: the publisher's files, as they follow `--source`.
        page: where the publisher offers them.
        train_mean: mean red, green and blue pixel of "train" in 0 ... 255; None if unknown.
        train_mean_tolerance: largest allowed difference from it, in the same unit.
    """

    name: str
    label: str
    tfds_name: str
    image_shape: tuple[int, int, int]
    sizes: Mapping[str, int]
    archives: str
    page: str
    train_mean: ChannelMean | None = None
    train_mean_tolerance: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} ({self.label})"

    @property
    def folder(self) -> str:
        """Folder of the dataset below the data directory."""
        return self.tfds_name.replace(":", "/")

    def known(self, split: str) -> KnownSplit | None:
        """Return the facts about a split; None if it is not a published one."""
        if split not in self.sizes:
            return None
        return KnownSplit(
            num_images=self.sizes[split],
            image_shape=self.image_shape,
            channel_mean=self.train_mean if split == "train" else None,
            channel_mean_tolerance=self.train_mean_tolerance,
            lookalikes={
                other.sizes[split]: str(other)
                for other in VARIANTS
                if other.name != self.name
                and other.image_shape == self.image_shape
                and split in other.sizes
            },
        )


CIFAR10 = Variant(
    name="cifar10",
    label="Krizhevsky",
    tfds_name="cifar10:3.0.2",
    image_shape=(32, 32, 3),
    sizes={"train": 50_000, "test": 10_000},
    archives="cifar-10-python.tar.gz",
    page="https://www.cs.toronto.edu/~kriz/cifar.html",
    # 255 times the widely used (0.49139968, 0.48215841, 0.44653091).
    train_mean=(125.3069, 122.9504, 113.8654),
    train_mean_tolerance=1e-3,
)


_IDX_SIZES = {"train": 60_000, "test": 10_000}
_IDX_FILES = " ".join(
    f"{split}-{kind}-ubyte.gz"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)

MNIST = Variant(
    name="mnist",
    label="LeCun et al.",
    tfds_name="mnist:3.0.1",
    image_shape=(28, 28, 1),
    sizes=_IDX_SIZES,
    archives=_IDX_FILES,
    page="https://storage.googleapis.com/cvdf-datasets/mnist/",
    # 255 times 0.1307, four digits on which those who normalize by it agree.
    train_mean=(33.33,),
    train_mean_tolerance=0.02,
)
FASHION_MNIST = Variant(
    name="fashion_mnist",
    label="Zalando",
    tfds_name="fashion_mnist:3.0.1",
    image_shape=(28, 28, 1),
    sizes=_IDX_SIZES,
    archives=_IDX_FILES,
    page="https://github.com/zalandoresearch/fashion-mnist or Debian's dataset-fashion-mnist",
    train_mean=(72.9404,),  # of the published files
    train_mean_tolerance=1e-3,
)


OLD_IMAGENET_SIZES = {"train": 1_281_149, "validation": 49_999}
NEW_IMAGENET_SIZES = {"train": 1_281_167, "validation": 50_000}


def _old_imagenet(size: int) -> Variant:
    return Variant(
        name=f"imagenet{size}_old",
        label="van den Oord et al. (old)",
        tfds_name=f"downsampled_imagenet/{size}x{size}:2.0.0",
        image_shape=(size, size, 3),
        sizes=OLD_IMAGENET_SIZES,
        archives=f"train_{size}x{size}.tar valid_{size}x{size}.tar",
        page="http://image-net.org/small/download.php (no longer there: look for a copy)",
    )


def _new_imagenet(
    size: int, train_mean: ChannelMean | None = None, tolerance: float = 0.0
) -> Variant:
    parts = ("train", "val") if size == 32 else ("train_part1", "train_part2", "val")
    return Variant(
        name=f"imagenet{size}_new",
        label="Chrabaszcz et al. (new, anti-aliased)",
        tfds_name=f"downsampled_imagenet_new/{size}x{size}:2.0.0",
        image_shape=(size, size, 3),
        sizes=NEW_IMAGENET_SIZES,
        archives=" ".join(f"Imagenet{size}_{part}.zip" for part in parts),
        page="https://image-net.org/download-images",
        train_mean=train_mean,
        train_mean_tolerance=tolerance,
    )


IMAGENET32_OLD, IMAGENET64_OLD = _old_imagenet(32), _old_imagenet(64)
# 255 times (0.4811, 0.4575, 0.4078), four digits on which those who normalize by it agree.
IMAGENET32_NEW = _new_imagenet(32, train_mean=(122.68, 116.66, 104.0), tolerance=0.05)
IMAGENET64_NEW = _new_imagenet(64)

_IMAGENETS = (IMAGENET32_OLD, IMAGENET32_NEW, IMAGENET64_OLD, IMAGENET64_NEW)
VARIANTS = (CIFAR10, MNIST, FASHION_MNIST, *_IMAGENETS)
