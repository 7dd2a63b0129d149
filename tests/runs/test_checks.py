"""What counts, seeds, places and kinds may be."""

import math

import numpy as np
import pytest

from idode_gin import checks
from idode_gin.solvers.adams import Adams
from idode_gin.solvers.base import AbstractSolver
from idode_gin.training.optimizers import AdamW


@pytest.mark.parametrize("value", ["1e-3", None, True, math.nan, math.inf, 0, -1.0])
def test_what_is_no_positive_number(value):
    with pytest.raises(ValueError, match="`size` must be .*greater than zero.*got size="):
        checks.check_positive("size", value)


@pytest.mark.parametrize("value", [2, 0.5, np.float32(0.5), np.int64(3)])
def test_what_is(value):
    checks.check_positive("size", value)


@pytest.mark.parametrize("value", [0.5, 2.0, "2", 0, -3, True])
def test_a_count_is_an_integer_above_zero(value):
    with pytest.raises(ValueError, match="`n` must be .*got n="):
        checks.check_count("n", value)
    for good in (1, np.int32(7)):
        checks.check_count("n", good)


@pytest.mark.parametrize("value", [-1, 2**32, 1.0, "0", None, True])
def test_a_seed_is_one_of_those_that_jax_tells_apart(value):
    with pytest.raises(ValueError, match="`seed` must be an integer from 0 to 2.32 - 1, got seed="):
        checks.check_seed("seed", value)
    for good in (0, 2**32 - 1, np.uint32(2**32 - 1)):
        checks.check_seed("seed", good)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (np.arange(3) + 0.5, "one integer for each of the 3 images, got float64"),
        (np.arange(2), "for each of the 3 images"),
        (np.arange(3) - 1, "from 0 to 2.31 - 1, got -1 to 1"),
        (np.arange(3) + 2**31 - 2, "got 2147483646 to 2147483648"),
    ],
)
def test_places_are_integers_that_stay_apart_in_32_bits(index, said):
    with pytest.raises(ValueError, match=f"`index` must be .*{said}"):
        checks.check_places("index", index, 3)
    checks.check_places("index", np.arange(3) + 2**31 - 3, 3)


def test_a_kind_is_named():
    with pytest.raises(ValueError, match="`solver` must be an instance of AbstractSolver, got 64"):
        checks.check_kind("solver", 64, AbstractSolver)
    checks.check_kind("solver", Adams(steps=2), AbstractSolver)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1])
def test_weight_decay_is_finite(value):
    with pytest.raises(ValueError, match="`weight_decay` must be finite and not negative"):
        AdamW(weight_decay=value)
