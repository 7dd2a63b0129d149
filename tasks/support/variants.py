"""Published datasets that are easily mistaken for one another, and what is known of each.

Old and new downsampled ImageNet show the same photographs, but differ by a quarter of a bit per
dim. Their numbers of images tell them apart.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, final

ChannelMean = tuple[float, float, float]


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownSplit:
    """What a split is known to hold.

    Attributes:
        num_images: N.
        channel_mean: mean red, green and blue pixel in 0 ... 255, or None where not known.
        channel_mean_tolerance: of each, in the same unit.
    """

    num_images: int
    channel_mean: ChannelMean | None = None
    channel_mean_tolerance: float = 0.0


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One dataset in the format of TensorFlow Datasets.

    Attributes:
        name: what `tasks.prepare` calls it, and the first task that reads it.
        label: how a reader tells it from others.
        tfds_name: "<dataset>[/<config>]:<version>", which is also its folder.
        image_shape: (height, width, channels).
        splits: what is known of each.
        archives: the publisher's files, as they would follow `--source`.
        page: where the publisher offers them.
    """

    name: str
    label: str
    tfds_name: str
    image_shape: tuple[int, int, int]
    splits: Mapping[str, KnownSplit]
    archives: str
    page: str

    @property
    def folder(self) -> str:
        """Where the dataset lies in the data directory."""
        return self.tfds_name.replace(":", "/")

    def known(self, split: str) -> dict[str, Any] | None:
        """What the split is known to hold, as a dict; None for a split that is not known."""
        if split not in self.splits:
            return None
        facts = self.splits[split]
        return {
            "num_images": facts.num_images,
            "image_shape": self.image_shape,
            "channel_mean": facts.channel_mean,
            "channel_mean_tolerance": facts.channel_mean_tolerance,
        }


CIFAR10 = Variant(
    name="cifar10",
    label="Krizhevsky",
    tfds_name="cifar10:3.0.2",
    image_shape=(32, 32, 3),
    splits={
        # 255 times the widely used (0.49139968, 0.48215841, 0.44653091).
        "train": KnownSplit(
            num_images=50_000,
            channel_mean=(125.3069, 122.9504, 113.8654),
            channel_mean_tolerance=1e-3,
        ),
        "test": KnownSplit(num_images=10_000),
    },
    archives="cifar-10-python.tar.gz",
    page="https://www.cs.toronto.edu/~kriz/cifar.html",
)


def _old_imagenet(size: int) -> Variant:
    return Variant(
        name=f"imagenet{size}_old",
        label="van den Oord et al. (old)",
        tfds_name=f"downsampled_imagenet/{size}x{size}:2.0.0",
        image_shape=(size, size, 3),
        splits={
            "train": KnownSplit(num_images=1_281_149),
            "validation": KnownSplit(num_images=49_999),
        },
        archives=f"train_{size}x{size}.tar valid_{size}x{size}.tar",
        page="http://image-net.org/small/download.php (no longer there: look for a copy)",
    )


def _new_imagenet(
    size: int, channel_mean: ChannelMean | None = None, tolerance: float = 0.0
) -> Variant:
    return Variant(
        name=f"imagenet{size}_new",
        label="Chrabaszcz et al. (new, anti-aliased)",
        tfds_name=f"downsampled_imagenet_new/{size}x{size}:2.0.0",
        image_shape=(size, size, 3),
        splits={
            "train": KnownSplit(
                num_images=1_281_167, channel_mean=channel_mean, channel_mean_tolerance=tolerance
            ),
            "validation": KnownSplit(num_images=50_000),
        },
        archives=f"Imagenet{size}_train.zip Imagenet{size}_val.zip",
        page="https://image-net.org/download-images",
    )


IMAGENET32_OLD, IMAGENET64_OLD = _old_imagenet(32), _old_imagenet(64)
# 255 times (0.4811, 0.4575, 0.4078), four digits on which those who normalize by it agree.
IMAGENET32_NEW = _new_imagenet(32, channel_mean=(122.68, 116.66, 104.0), tolerance=0.05)
IMAGENET64_NEW = _new_imagenet(64)

VARIANTS = (CIFAR10, IMAGENET32_OLD, IMAGENET32_NEW, IMAGENET64_OLD, IMAGENET64_NEW)


def other_variants(variant: Variant, num_images: int, split: str) -> str | None:
    """A sentence that names the other variants, of the same image shape, with so many images.

    None where no published one has that many in the split.
    """
    found = [
        f"{other.name} ({other.label})"
        for other in VARIANTS
        if other.name != variant.name
        and other.image_shape == variant.image_shape
        and split in other.splits
        and other.splits[split].num_images == num_images
    ]
    if not found:
        return None
    return f"{num_images:,} images in {split!r} are those of {' or '.join(found)}."
