"""Augmentation: what is done to an image, how often, and that the network is told."""

import itertools

import numpy as np
import pytest

from idode_gin.feed import augmentation
from idode_gin.feed.augmentation import AnyBit, Augmentation, BitPerKind, Codes

EVERY_CODE = list(itertools.product((False, True), range(4), range(6)))


def codes_of(rows):
    flip, turns, order = (np.asarray(column) for column in zip(*rows, strict=True))
    return Codes(flip.astype(bool), turns, order, np.zeros((len(rows), 3), bool))


def test_every_code_does_what_it_says():
    images = np.random.default_rng(0).integers(0, 256, (len(EVERY_CODE), 5, 5, 3), dtype=np.uint8)
    found = augmentation.apply(images, codes_of(EVERY_CODE))
    orders = augmentation.channel_orders(3)
    for image, result, (flip, turns, order) in zip(images, found, EVERY_CODE, strict=True):
        expected = np.fliplr(image) if flip else image
        for _ in range(turns):
            # A quarter turn counter-clockwise: the right column becomes the top row.
            expected = np.stack([expected[:, -1 - row] for row in range(5)])
        expected = np.stack([expected[..., channel] for channel in orders[order]], axis=-1)
        np.testing.assert_array_equal(result, expected)
    assert len({result.tobytes() for result in found}) == len(EVERY_CODE)


@pytest.mark.parametrize("shape", [(3, 7, 1), (4, 4, 2), (6, 2, 5)])
def test_other_shapes_and_types(shape):
    images = np.arange(2 * np.prod(shape), dtype=np.int32).reshape(2, *shape)
    found = augmentation.apply(images, codes_of([(True, 0, 0), (False, 2, 1)]))
    assert found.dtype == images.dtype
    np.testing.assert_array_equal(found[0], images[0, :, ::-1])
    order = list(
        augmentation.channel_orders(shape[2])[1 % len(augmentation.channel_orders(shape[2]))]
    )
    if len(augmentation.channel_orders(shape[2])) > 1:
        np.testing.assert_array_equal(found[1], np.rot90(images[1], 2)[..., order])


def test_frequencies_are_the_published_ones():
    """Each coin fair and independent of the others, turns and orders equally likely."""
    count = 60_000
    codes = Augmentation(channels=True).codes(0, 5, np.arange(count))
    near = dict(atol=4.5 * 0.5 / np.sqrt(count))
    np.testing.assert_allclose(codes.applied.mean(0), 0.5, **near)
    np.testing.assert_allclose(np.mean(codes.applied.all(1)), 1 / 8, **near)
    np.testing.assert_allclose(np.mean(~codes.applied.any(1)), 1 / 8, **near)
    turns = np.bincount(codes.turns, minlength=4) / count
    np.testing.assert_allclose(turns, [1 / 2, 1 / 6, 1 / 6, 1 / 6], **near)
    orders = np.bincount(codes.order, minlength=6) / count
    np.testing.assert_allclose(orders, [1 / 2 + 1 / 12, *[1 / 12] * 5], **near)
    assert not np.any(codes.flip != codes.applied[:, 0])
    assert np.all((codes.turns > 0) == codes.applied[:, 1])


def test_words_do_not_depend_on_how_many_are_asked_for():
    kinds = Augmentation(channels=True)
    few, many = kinds.codes(1, 2, np.asarray([17])), kinds.codes(1, 2, np.arange(50_000))
    for name, each in few._asdict().items():
        np.testing.assert_array_equal(each[0], getattr(many, name)[17])


def test_the_codes_are_the_recorded_ones():
    """A run that is resumed years later, under another NumPy, continues as it would have."""
    codes = Augmentation(channels=True).codes(0, 0, np.arange(8))
    assert codes.flip.astype(int).tolist() == RECORDED["flip"]
    assert codes.turns.tolist() == RECORDED["turns"]
    assert codes.order.tolist() == RECORDED["order"]


def test_what_is_switched_off_never_happens():
    codes = Augmentation(flip=False, rotation=False, channels=True).codes(0, 0, np.arange(99))
    assert not codes.flip.any()
    assert not codes.turns.any()
    assert codes.order.any()
    assert codes.applied.shape == (99, 1)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [(AnyBit(), [[0], [1], [1]]), (BitPerKind(), [[0, 0], [1, 0], [1, 1]])],
)
def test_bits(bits, expected):
    kinds = Augmentation(bits=bits)
    applied = np.asarray([[False, False], [True, False], [True, True]])
    found = bits(applied)
    assert found.dtype == np.float32
    assert kinds.conditioning_size == found.shape[1]
    np.testing.assert_array_equal(found, expected)


def test_nonsense_is_refused():
    with pytest.raises(
        ValueError, match=r"one of flip, rotation and channels.*task that does not augment"
    ):
        Augmentation(flip=False, rotation=False)
    with pytest.raises(ValueError, match=r"square images, got 4 x 5.*rotation = False"):
        Augmentation().check((4, 5, 3))
    Augmentation(rotation=False).check((4, 5, 3))


RECORDED = {
    "flip": [0, 1, 1, 1, 1, 1, 0, 0],
    "turns": [0, 2, 2, 2, 2, 0, 0, 0],
    "order": [5, 0, 0, 2, 4, 0, 0, 0],
}


def test_many_channels_are_no_burden_where_they_keep_their_places():
    kinds = Augmentation()
    kinds.check((4, 4, 40))
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 40), dtype=np.uint8)
    codes = kinds.codes(0, 0, np.arange(30), channels=40)
    found = augmentation.apply(images, codes)
    np.testing.assert_array_equal(found[~codes.applied.any(1)], images[~codes.applied.any(1)])
    with pytest.raises(ValueError, match=r"At most 5 channels.*got 6.*channels = False"):
        Augmentation(channels=True).check((4, 4, 6))
