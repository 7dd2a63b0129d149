"""Random flips, rotations and channel orders of training images, as pure functions.

`(seed, epoch, image)` alone decides how an image is augmented: there is no state to save, and all
processes and resumed runs draw the same.
"""

import abc
import dataclasses
import functools
import itertools
import math
from typing import NamedTuple, final

import numpy as np

KINDS = ("flip", "rotation", "channels")
"""Kinds of augmentation, in the order they are applied."""

_STREAM = 0x41554700  # separates these words from those that order the epochs
_SMALLEST_TABLE = 1 << 12
_MOST_CHANNELS = 5  # 120 orders, 960 codes


class Codes(NamedTuple):
    """The augmentation drawn for each of n images."""

    flip: np.ndarray
    """bool `[n]`: mirrored left to right."""
    turns: np.ndarray
    """int `[n]`, 0 … 3: quarter turns, counter-clockwise."""
    order: np.ndarray
    """int `[n]`: place in `channel_orders(C)` of the new order of the channels."""
    applied: np.ndarray
    """bool `[n, kinds]`: True where a kind was applied; kinds switched on, in the order of KINDS.
    A shuffle of the channels counts even if it draws the present order."""


class AbstractBits(abc.ABC):
    """Conditioning of the network on the augmentation of an image."""

    @abc.abstractmethod
    def size(self, kinds: int) -> int:
        """Return K, the numbers per image, for this many kinds of augmentation."""

    @abc.abstractmethod
    def __call__(self, applied: np.ndarray) -> np.ndarray:
        """Map bool `[n, kinds]` to float32 `[n, K]`; zeros for an image that was not augmented."""


@final
@dataclasses.dataclass(frozen=True)
class AnyBit(AbstractBits):
    """One bit: 1 if any kind was applied. The published choice."""

    def size(self, kinds: int) -> int:
        """Return 1."""
        return 1

    def __call__(self, applied: np.ndarray) -> np.ndarray:
        """Return float32 `[n, 1]`."""
        return np.any(applied, axis=1)[:, None].astype(np.float32)


@final
@dataclasses.dataclass(frozen=True)
class BitPerKind(AbstractBits):
    """One bit for each kind that is switched on, in the order of `KINDS`."""

    def size(self, kinds: int) -> int:
        """Return the number of kinds."""
        return kinds

    def __call__(self, applied: np.ndarray) -> np.ndarray:
        """Return float32 `[n, kinds]`."""
        return applied.astype(np.float32)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Applies each kind with probability 1/2, independently, in the order of `KINDS`.

        flip        mirrored left to right
        rotation    1, 2 or 3 quarter turns, equally likely
        channels    any of the C! orders of the channels, equally likely, the present one included

    Args:
        flip: mirror images.
        rotation: turn images, which must then be square.
        channels: permute the channels.
        bits: conditioning of the network.

    Raises:
        ValueError: if no kind is switched on.
    Refs: i-DODE, the settings with data augmentation; its published data pipeline.
    """

    flip: bool = True
    rotation: bool = True
    channels: bool = False
    bits: AbstractBits = AnyBit()

    def __post_init__(self) -> None:
        if not any(getattr(self, kind) for kind in KINDS):
            raise ValueError(
                "`Augmentation` needs one of flip, rotation and channels, got none. To train on "
                "images as they are, use a task that does not augment, such as 'cifar10', and "
                "DatasetConfig.augmentation = None."
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds that are switched on."""
        return tuple(kind for kind in KINDS if getattr(self, kind))

    @property
    def conditioning_size(self) -> int:
        """K, conditioning numbers per image."""
        return self.bits.size(len(self.kinds))

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise ValueError unless images (height, width, channels) can be augmented this way."""
        height, width, channels = image_shape
        if self.channels and channels > _MOST_CHANNELS:
            raise ValueError(
                f"At most {_MOST_CHANNELS} channels can be permuted, got {channels}. Set "
                "Augmentation.channels = False."
            )
        if self.rotation and height != width:
            raise ValueError(
                f"Quarter turns need square images, got {height} x {width}. Set "
                "Augmentation.rotation = False."
            )

    def codes(self, seed: int, epoch: int, index: np.ndarray, channels: int = 3) -> Codes:
        """Draw the augmentation of the images at `index` (places in their split) in this epoch.

        Args:
            seed: of the dataset.
            epoch: from 0.
            index: integers `[n]`.
            channels: C of the images.
        """
        index = np.asarray(index)
        # A power of two above every index, so that few tables are made.
        size = max(_SMALLEST_TABLE, 1 << int(index.max(initial=0)).bit_length())
        words = _words(seed, epoch, size)[index]
        coins = {
            kind: (words >> np.uint64(place)) & np.uint64(1) for place, kind in enumerate(KINDS)
        }
        applied = {kind: coins[kind].astype(bool) & getattr(self, kind) for kind in KINDS}
        # 24 bits each, of one word that nothing else reads: bias below 1e-6.
        turns = 1 + _below(words >> np.uint64(8), 3)
        orders = len(channel_orders(channels)) if self.channels else 1
        order = _below(words >> np.uint64(32), orders)
        return Codes(
            flip=applied["flip"],
            turns=np.where(applied["rotation"], turns, 0),
            order=np.where(applied["channels"], order, 0),
            applied=np.stack([applied[kind] for kind in self.kinds], axis=1),
        )


def apply(images: np.ndarray, codes: Codes) -> np.ndarray:
    """Return augmented copies of `[n, H, W, C]`, in the same order and dtype.

    Images with the same code are processed together: every code is one permutation of the places.
    """
    shape = images.shape[1:]
    orders = len(channel_orders(shape[2])) if np.any(codes.order) else 1
    numbers = (codes.flip * 4 + codes.turns) * orders + codes.order
    flat = images.reshape(len(images), -1)
    out = np.empty_like(flat)
    by_code = np.argsort(numbers, kind="stable")
    codes_here, starts = np.unique(numbers[by_code], return_index=True)
    for number, rows in zip(codes_here.tolist(), np.split(by_code, starts[1:]), strict=True):
        # mode: "raise", the default, would buffer the output.
        out[rows] = np.take(flat[rows], _places(shape, number, orders), axis=1, mode="clip")
    return out.reshape(images.shape)


@functools.cache
def channel_orders(channels: int) -> tuple[tuple[int, ...], ...]:
    """Return all orders of C channels, the present one first."""
    return tuple(itertools.permutations(range(channels)))


@functools.lru_cache(maxsize=1024)
def _places(shape: tuple[int, int, int], number: int, orders: int) -> np.ndarray:
    """Return, flat, the source place of each place of the augmented image."""
    rest, order = divmod(number, orders)
    flip, turns = divmod(rest, 4)
    places = np.arange(math.prod(shape)).reshape(shape)
    if flip:
        places = places[:, ::-1]
    places = np.rot90(places, turns)
    if orders > 1:
        places = places[..., list(channel_orders(shape[2])[order])]
    return np.ascontiguousarray(places).reshape(-1)


@functools.lru_cache(maxsize=2)  # one epoch, or two for a batch that spans both
def _words(seed: int, epoch: int, size: int) -> np.ndarray:
    """Return uint64 `[size]`; word i of the epoch's stream does not depend on the size."""
    # NumPy guarantees that raw words never change.
    return np.random.Philox(np.random.SeedSequence([seed, epoch, _STREAM])).random_raw(size)


def _below(words: np.ndarray, end: int) -> np.ndarray:
    """Return integers 0 … end - 1 from the lowest 24 bits."""
    return ((words & np.uint64(0xFFFFFF)) % np.uint64(end)).astype(np.int64)
