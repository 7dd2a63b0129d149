"""Paired differences: their standard error, and the order of images."""

import math

import numpy as np
import pytest

from idode_gin.evaluation import paired

NUMBER = 400


@pytest.fixture(scope="module")
def figures():
    """Two sets of figures of the same images, which are hard or easy for both."""
    random = np.random.default_rng(3)
    image = random.gamma(4.0, 0.5, NUMBER)
    return image + 0.1 * random.normal(size=NUMBER), image - 0.02 + 0.2 * random.gamma(
        2, 0.1, NUMBER
    )


def test_the_paired_error_is_that_of_a_bootstrap_over_images(figures):
    first, second = figures
    found, draws = paired.difference(first, second), 4000
    chosen = np.random.default_rng(0).integers(0, NUMBER, (draws, NUMBER))
    bootstrap = (second[chosen].mean(axis=1) - first[chosen].mean(axis=1)).std(ddof=1)
    # A bootstrap has the variance of its population, with N in place of N - 1; and the deviation of
    # `draws` nearly normal means is known to a share of 1 / sqrt(2 (draws - 1)).
    expected = found.stderr * math.sqrt((NUMBER - 1) / NUMBER)
    assert abs(bootstrap / expected - 1) < 4 / math.sqrt(2 * (draws - 1))
    assert found.stderr < 0.5 * found.stderr_unpaired


def test_the_paired_error_of_correlated_figures_is_below_the_unpaired(figures):
    first, second = figures
    found = paired.difference(first, second)
    covariance = np.cov(first, second)[0, 1]
    assert found.correlation == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert found.stderr**2 == pytest.approx(found.stderr_unpaired**2 - 2 * covariance / NUMBER)
    assert paired.difference(first, -second).stderr > found.stderr_unpaired
    assert found.mean == pytest.approx(second.mean() - first.mean())
    assert found.share_lower == np.mean(second < first)


def test_the_same_figures_differ_by_zero_without_error(figures):
    found = paired.difference(figures[0], figures[0])
    assert (found.mean, found.stderr, found.share_lower) == (0, 0, 0)
    shifted = paired.difference(figures[0], figures[0] + 0.25)
    assert shifted.mean == pytest.approx(0.25)
    assert shifted.stderr < 1e-15
    assert paired.extremes(found.values, 6) == ([], [])


def test_one_image_has_no_error_and_equal_figures_no_correlation():
    found = paired.difference(np.array([1.0]), np.array([3.0]))
    assert (found.mean, found.stderr, found.stderr_unpaired, found.correlation) == (2, *[None] * 3)
    found = paired.difference(np.ones(3), np.array([1.0, 2.0, 3.0]))
    assert found.correlation is None
    assert found.stderr == pytest.approx(math.sqrt(1 / 3))


def test_images_are_matched_by_their_index(figures):
    order = np.random.default_rng(1).permutation(NUMBER)
    np.testing.assert_array_equal(paired.in_order(order, figures[0][order]), figures[0])
    for wrong in (np.r_[order[:-1], order[0]], order + 1, order[:-1]):
        with pytest.raises(ValueError, match="each of 0 … 399 once"):
            paired.in_order(wrong, figures[0])


def test_the_extreme_images_come_first():
    values = np.array([0.0, -3.0, 2.0, -1.0, 5.0])
    assert paired.extremes(values, 1) == ([1], [4])
    assert paired.extremes(values, 6) == ([1, 3], [4, 2])
