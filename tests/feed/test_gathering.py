"""Rows that come some at a time become one array, whatever was expected."""

import numpy as np
import pytest

from idode_gin.feed.data import narrowed
from idode_gin.feed.gathering import Gathered

ROWS = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("expected", [0, 1, 50, 70, 10**15, 10**30])
@pytest.mark.parametrize("cuts", [[], [1, 2, 3], [7, 20], list(range(1, 50))])
def test_all_rows_in_order(cuts, expected):
    gathered = Gathered("image", expected)
    for rows in np.split(ROWS, cuts):
        gathered.add(rows)
    assert len(gathered) == 50
    found = gathered.result()
    np.testing.assert_array_equal(found, ROWS)
    assert found.dtype == np.uint8
    assert found.flags.owndata
    assert len(gathered) == 0


def test_dtypes_are_joined_as_numpy_joins_them():
    gathered = Gathered("image")
    parts = [ROWS[:3], ROWS[3:5].astype(np.int32) - 300, ROWS[5:]]
    for rows in parts:
        gathered.add(rows)
    found = gathered.result()
    np.testing.assert_array_equal(found, np.concatenate(parts))
    assert found.dtype == np.int32


def test_rows_of_another_shape_are_refused():
    gathered = Gathered("image")
    gathered.add(ROWS)
    with pytest.raises(ValueError, match=r"number 50 is \[4, 5\] and number 0 is \[4, 5, 3\]"):
        gathered.add(ROWS[..., 0])
    with pytest.raises(ValueError, match='no "image" to gather'):
        Gathered("image").result()


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_integers_become_int32_where_they_fit(dtype):
    images = np.array([0, 100, 127], dtype)
    assert narrowed(images).dtype == np.int32
    np.testing.assert_array_equal(narrowed(images), images)
    if np.iinfo(dtype).max > 2**31:
        with pytest.raises(ValueError, match=r"held by int32, got .* between 1 and 2147483648"):
            narrowed(np.array([1, 2**31], dtype))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_bytes_and_floats_stay_as_they_are(dtype):
    images = ROWS.astype(dtype)
    assert narrowed(images) is images
