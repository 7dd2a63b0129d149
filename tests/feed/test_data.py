"""Configurations and splits that are refused, and what identifies a split."""

import dataclasses
import hashlib

import made
import numpy as np
import pytest

from idode_gin import checks
from idode_gin.feed import data

# Configuration and images that are refused.


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"batch_size": -4}, {"seed": -1}])
def test_bad_sizes_and_seeds_are_refused(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"`{name}` must be an integer"):
        made.config(**changes)


@pytest.mark.parametrize("value", [1e3, 0.5, "ten", True, None])
def test_what_is_not_an_integer_is_refused(value):
    with pytest.raises(ValueError, match="`size` must be an integer, 1 or more"):
        checks.check_integer("size", value, at_least=1)
    checks.check_integer("size", np.int64(3), at_least=1)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((4, 3, 3, 1), np.float32),
        np.zeros((4, 3, 3, 1), bool),
        np.zeros((4, 3, 3), np.uint8),
        np.zeros((4, 9), np.uint8),
    ],
)
def test_images_of_another_type_or_rank_are_refused(images):
    with pytest.raises(ValueError, match=r"integer images \[N, H, W, C\], got"):
        dataclasses.replace(made.split(4), images=images)


@pytest.mark.parametrize("shape", [(0, 3, 3, 1), (4, 3, 3, 0)])
def test_images_without_pixels_are_refused(shape):
    rows = np.zeros((shape[0], 1), np.float32)
    with pytest.raises(ValueError, match="no pixels"):
        dataclasses.replace(made.split(), images=np.zeros(shape, np.uint8), conditioning=rows)


@pytest.mark.parametrize(
    "rows", [np.zeros((6, 1)), np.zeros(7), np.full((7, 1), np.nan)], ids=["few", "flat", "nan"]
)
def test_bad_conditioning_is_refused(rows):
    with pytest.raises(ValueError, match="one finite conditioning row"):
        dataclasses.replace(made.split(7), conditioning=rows.astype(np.float32))


@pytest.mark.parametrize(("bad", "dtype"), [(17, np.uint8), (-1, np.int32), (300, np.int32)])
def test_the_first_bad_pixel_is_named(bad, dtype):
    images = np.zeros((5, 2, 3, 1), dtype)
    images[3, 1, 2, 0] = images[4, 0, 0, 0] = bad
    images[0] = 16  # the largest that 17 levels allow
    split = dataclasses.replace(made.split(5), images=images)
    with pytest.raises(ValueError, match=rf"0\.\.16.*image 3 has {bad} at .*\(1, 2, 0\)"):
        data.check_images(split, 17)


def test_all_levels_are_allowed_and_not_one_more():
    split = made.split(8)
    data.check_images(split, 8)
    with pytest.raises(ValueError, match="image 7 has 7"):
        data.check_images(split, 7)
    full = dataclasses.replace(made.split(1), images=np.full((1, 2, 2, 1), 255, np.uint8))
    data.check_images(full, 256)


def test_the_digest_is_of_the_pixels():
    split = made.split()
    assert split.fingerprint.sha256 == hashlib.sha256(split.images.tobytes()).hexdigest()
    other = split.images.copy()
    other[6, 1, 1, 0] += 1
    assert dataclasses.replace(split, images=other).fingerprint != split.fingerprint
    # A view that is not contiguous has the digest of its pixels all the same.
    view = dataclasses.replace(split, images=other[:, ::-1])
    assert view.fingerprint.sha256 == hashlib.sha256(view.images.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("images", "levels", "way"),
    [
        (np.array([0, 7 / 16, 1]), 17, "np.rint(images * 16).astype('uint8')"),
        (np.array([-1, 0.5, 1]), 256, "np.rint((images + 1) / 2 * 255).astype('uint8')"),
        (np.array([0.0, 3.0, 255.0]), 256, "whole numbers: images.astype('uint8')"),
        (np.array([-2.1, 3.0]), 256, "before any scaling; got -2.1 to 3"),
        (np.array([0, 300]), 1024, ""),
    ],
)
def test_images_of_floating_point_come_with_the_way_back(images, levels, way):
    hint = checks.integers_hint(images, levels)
    assert way in hint
    assert bool(hint) == bool(way)
    if way:
        with pytest.raises(ValueError, match=r"must be integers \[N, H, W, C\].*integer levels"):
            checks.check_pixels(images[:, None, None, None], levels)


@pytest.mark.parametrize(
    ("shape", "way"),
    [((5, 8, 8), "images[..., None]"), ((8, 8, 3), "images[None]"), ((8, 8), None)],
)
def test_images_that_lack_an_axis_come_with_it(shape, way):
    with pytest.raises(ValueError, match=r"must be integers \[N, H, W, C\]") as caught:
        checks.check_pixels(np.zeros(shape, np.uint8), 256)
    hint = str(caught.value).partition(f"{list(shape)}.")[2]
    assert hint.endswith(f"axis of 1: {way}." if way else "")
    assert bool(hint) == bool(way)
