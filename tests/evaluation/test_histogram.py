"""The histogram baseline is a probability distribution, and matches counting by hand."""

import itertools
import tracemalloc

import numpy as np
import pytest

from idode_gin.evaluation import histogram


def draw(num_images, levels, shape=(3, 2, 2), seed=0):
    return np.random.default_rng(seed).integers(0, levels, (num_images, *shape))


def test_bits_per_dim_match_counting_by_hand():
    train, test = draw(11, 5), draw(4, 5, seed=1)
    expected = []
    for image in test:
        log2_p = 0.0
        for place in np.ndindex(3, 2, 2):
            same = sum(int(other[place] == image[place]) for other in train)
            log2_p += np.log2((same + 1) / (11 + 5))
        expected.append(-log2_p / 12)
    bits = histogram.bits_per_dim(train, test, 5)
    np.testing.assert_allclose(bits, expected, rtol=1e-13)
    assert bits.dtype == np.float64


def test_all_images_together_have_probability_one():
    # 3^4 images: few enough to sum over every one of them.
    every = np.array(list(itertools.product(range(3), repeat=4))).reshape(-1, 2, 2, 1)
    probabilities = 2.0 ** (-4 * histogram.bits_per_dim(draw(5, 3, (2, 2, 1)), every, 3))
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert (probabilities > 0).all()


def test_each_pixel_has_mass_one():
    train = draw(50, 17, (1, 1, 1))
    probabilities = 2.0 ** -histogram.bits_per_dim(train, np.arange(17).reshape(-1, 1, 1, 1), 17)
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-12)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_equal_counts_cost_log2_of_the_levels(levels):
    values = np.arange(levels).reshape(-1, 1, 1, 1) * np.ones((1, 2, 3, 1), int)
    bits = histogram.bits_per_dim(values, values, levels)
    np.testing.assert_allclose(bits, np.log2(levels), rtol=1e-13)


def test_much_data_costs_its_entropy():
    # One bit with probability 1/4: its entropy is 2 - (3/4) log2(3). Standard error 2e-3.
    images = (np.random.default_rng(0).random((40_000, 1, 1, 4)) < 0.25).astype(np.uint8)
    bits = histogram.bits_per_dim(images, images, 2)
    assert bits.mean() == pytest.approx(2 - 0.75 * np.log2(3), abs=0.006)


def test_one_image_always_costs_the_rule_of_succession():
    image = draw(1, 9)
    assert histogram.bits_per_dim(image, image, 9) == pytest.approx(np.log2(10 / 2))
    assert histogram.bits_per_dim(image, (image + 1) % 9, 9) == pytest.approx(np.log2(10))


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_chunk_size_does_not_matter(monkeypatch, chunk):
    train, test = draw(30, 5), draw(20, 5, seed=1)
    expected = histogram.bits_per_dim(train, test, 5)
    monkeypatch.setattr(histogram, "_CHUNK", chunk)
    actual = histogram.bits_per_dim(train, test, 5)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("cells", [1, 5, 24, 1000])
def test_a_table_of_many_levels_is_counted_in_parts(monkeypatch, cells):
    train, test = draw(30, 5), draw(20, 5, seed=1)
    expected = histogram.bits_per_dim(train, test, 5)
    monkeypatch.setattr(histogram, "_CELLS", cells)
    actual = histogram.bits_per_dim(train, test, 5)
    np.testing.assert_allclose(actual, expected, rtol=1e-14)


def test_memory_of_a_table_does_not_grow_with_the_levels():
    images = draw(4, 1 << 16, (16, 16, 3)).astype(np.uint16)
    tracemalloc.start()
    try:
        bits = histogram.bits_per_dim(images, images, 1 << 16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 160 << 20  # the whole table would take 403 MB, and as much again
    assert 14 < bits.min() <= bits.max() < 16


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64])
def test_unsigned_pixels_count_like_signed_ones(dtype):
    images = draw(30, 256)
    signed = histogram.bits_per_dim(images, images, 256)
    unsigned = images.astype(dtype)
    np.testing.assert_array_equal(histogram.bits_per_dim(unsigned, unsigned, 256), signed)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (draw(3, 4) + 1, r"0\.\.3"),
        (draw(3, 4) - 1, r"0\.\.3"),
        (draw(3, 4).astype(float), "integers"),
        (draw(3, 4)[..., 0], "integers"),
        (draw(0, 4), "one or more"),
    ],
)
def test_invalid_images_raise(images, message):
    with pytest.raises(ValueError, match=message):
        histogram.bits_per_dim(images, draw(9, 4), 4)
    with pytest.raises(ValueError, match=message):
        histogram.bits_per_dim(draw(9, 4), images, 4)


def test_images_of_another_shape_raise():
    with pytest.raises(ValueError, match=r"\[3, 2, 2\], got \[2, 3, 2\]"):
        histogram.bits_per_dim(draw(9, 4), draw(9, 4, (2, 3, 2)), 4)
