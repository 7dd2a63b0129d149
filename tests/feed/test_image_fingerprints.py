"""What identifies a split's images."""

import hashlib

import numpy as np
import pytest

from idode_gin.feed import image_fingerprints
from idode_gin.feed.image_fingerprints import Fingerprinter, ImageFingerprint


def images_of(count=7, seed=0):
    return np.random.default_rng(seed).integers(3, 251, (count, 4, 5, 3), dtype=np.uint8)


def test_of_known_images():
    images = images_of()
    found = image_fingerprints.fingerprint(images)
    each = sorted(hashlib.sha256(image.tobytes()).digest() for image in images)
    assert found == ImageFingerprint(
        num_images=7,
        image_shape=(4, 5, 3),
        channel_mean=tuple(images.astype(float).mean((0, 1, 2)).tolist()),
        pixel_range=(int(images.min()), int(images.max())),
        sha256=hashlib.sha256(images.tobytes()).hexdigest(),
        content_sha256=hashlib.sha256(b"".join(each)).hexdigest(),
    )
    assert ImageFingerprint.from_dict(found.as_dict()) == found


def test_order_changes_one_digest_and_pixels_both():
    images = images_of()
    found = image_fingerprints.fingerprint(images)
    turned = image_fingerprints.fingerprint(images[::-1])
    assert turned.content_sha256 == found.content_sha256
    assert turned.sha256 != found.sha256
    other = images.copy()
    other[3, 2, 1, 0] ^= 1
    changed = image_fingerprints.fingerprint(other)
    assert changed.content_sha256 != found.content_sha256
    assert changed.sha256 != found.sha256


@pytest.mark.parametrize("cuts", [[], [1], [3, 4]])
def test_pieces_make_no_difference(cuts):
    images = images_of(3000)
    taken = Fingerprinter()
    for piece in np.split(images, [*cuts, 1500]):
        taken.add(piece)
    assert taken.result() == image_fingerprints.fingerprint(images)


def test_byte_order_makes_no_difference():
    images = images_of().astype("<i4")
    assert image_fingerprints.fingerprint(images) == image_fingerprints.fingerprint(
        images.astype(">i4")
    )


def test_what_is_no_images_is_refused():
    with pytest.raises(ValueError, match="one image or more"):
        Fingerprinter().result()
    with pytest.raises(ValueError, match="integers"):
        Fingerprinter().add(np.zeros((2, 4, 4, 3)))
    taken = Fingerprinter()
    taken.add(images_of())
    with pytest.raises(ValueError, match="one shape"):
        taken.add(images_of()[:, :3])
