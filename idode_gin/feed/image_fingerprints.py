"""Fingerprints that identify a split: number of images, shape, channel means, pixels."""

import dataclasses
import hashlib
from typing import Any, final

import numpy as np

RECORD = "fingerprint.json"
"""File in a prepared dataset's folder: split name -> fingerprint."""
RESIZING = "resizing"
"""Key in that file: what was done to the pixels, in words; absent if nothing."""
SPLITTING = "splitting"
"""Key in that file: how the images were put into splits, in words; absent if they were in some."""

_CHUNK = 1024  # images converted to bytes at a time


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFingerprint:
    """Facts that identify a split's images: two splits with equal fingerprints hold the same ones.

    Attributes:
        num_images: N.
        image_shape: (H, W, C).
        channel_mean: mean pixel of each channel, levels; exact to rounding.
        pixel_range: smallest and largest pixel, levels.
        sha256: of the pixels' bytes in the split's order.
        content_sha256: of the images' own digests, sorted: independent of the order.
    """

    num_images: int
    image_shape: tuple[int, int, int]
    channel_mean: tuple[float, ...]
    pixel_range: tuple[int, int]
    sha256: str
    content_sha256: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as lists, numbers and strings, for JSON."""
        fields = dataclasses.asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ImageFingerprint":
        """Return the fingerprint of which `fields` is the `as_dict()`."""
        lists_as_tuples: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        return cls(**lists_as_tuples)


class Fingerprinter:
    """Computes the fingerprint of images that arrive some at a time."""

    def __init__(self) -> None:
        self._shape: tuple[int, int, int] | None = None
        self._in_order = hashlib.sha256()
        self._digests = bytearray()  # a list of objects would take three times as much
        self._sums: list[int] = []
        self._smallest, self._largest = 0, 0

    def add(self, images: np.ndarray) -> None:
        """Append integer images `[n, H, W, C]`.

        Raises:
            ValueError: if they are not integers of rank 4, or of another shape than those before.
        """
        if images.ndim != 4 or images.dtype.kind not in "iu":
            raise ValueError(
                f"Images must be integers [n, H, W, C], got {images.dtype} {list(images.shape)}."
            )
        height, width, channels = images.shape[1:]
        if self._shape is None:
            self._shape, self._sums = (height, width, channels), [0] * channels
            self._smallest = self._largest = int(images.flat[0]) if images.size else 0
        if self._shape != images.shape[1:]:
            raise ValueError(
                f"Images of one split must have one shape, got {images.shape[1:]} after "
                f"{self._shape}."
            )
        for start in range(0, len(images), _CHUNK):
            self._add_chunk(np.ascontiguousarray(images[start : start + _CHUNK]))

    def result(self) -> ImageFingerprint:
        """Return the fingerprint of all images so far.

        Raises:
            ValueError: if there were none.
        """
        if self._shape is None or not self._digests:
            raise ValueError("A fingerprint needs one image or more, got none.")
        height, width, _ = self._shape
        digests = np.frombuffer(self._digests, "S32")
        digests.sort()  # in place
        pixels = len(digests) * height * width
        return ImageFingerprint(
            num_images=len(digests),
            image_shape=self._shape,
            channel_mean=tuple(total / pixels for total in self._sums),
            pixel_range=(self._smallest, self._largest),
            sha256=self._in_order.hexdigest(),
            content_sha256=hashlib.sha256(digests.data).hexdigest(),
        )

    def _add_chunk(self, images: np.ndarray) -> None:
        # Little endian on every machine.
        images = images.astype(images.dtype.newbyteorder("<"), copy=False)
        self._in_order.update(images.data)
        for image in images:
            self._digests += hashlib.sha256(image.data).digest()
        self._smallest = min(self._smallest, int(images.min()))
        self._largest = max(self._largest, int(images.max()))
        sums = images.sum(axis=(0, 1, 2), dtype=np.int64).tolist()
        self._sums = [total + more for total, more in zip(self._sums, sums, strict=True)]


def fingerprint(images: np.ndarray) -> ImageFingerprint:
    """Return the fingerprint of a whole split `[N, H, W, C]`, read some images at a time."""
    fingerprinter = Fingerprinter()
    fingerprinter.add(images)
    return fingerprinter.result()
