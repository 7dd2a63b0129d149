"""Fitted spacings, compared with the optimal concentration of steps."""

import numpy as np
import pytest

from idode_gin.likelihood import spacing_fit


def test_steps_have_equal_parts_in_the_error():
    """For D^{1 / (k + 1)} = e^{-2 t} the times are known: -log(1 - s (1 - e^{-2})) / 2."""
    t = np.linspace(0, 1, 2001)
    images = np.asarray([0.5, -1.5])  # what counts is the mean size
    found = spacing_fit.fit(np.exp(-2 * t[:, None]) ** 4 * images, order=3).fractions(32)
    shares = np.linspace(0, 1, 33)
    expected = -np.log(1 - shares * (1 - np.exp(-2.0))) / 2
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_no_time_is_without_steps():
    defects = np.zeros((101, 1))
    defects[50] = 1.0
    longest = np.diff(spacing_fit.fit(defects, order=4).fractions(320)).max()
    assert longest < 12 / 320
    flat = spacing_fit.fit(np.zeros((9, 2)), order=4)
    np.testing.assert_allclose(flat.fractions(8), np.linspace(0, 1, 9), atol=1e-5)


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="`defects` must be finite .*fit_spacing` to False"):
        spacing_fit.fit(np.full((9, 2), np.nan), order=4)
