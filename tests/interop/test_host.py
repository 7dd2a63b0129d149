"""The error of a derivative on the host, of functions whose derivatives are known."""

import numpy as np
import pytest

from idode_gin.interop.host import derivative_error


def function(z, t, classes=None):
    factor = 1 if classes is None else classes[:, :1]
    return np.sin(3 * z) * np.mean(z, axis=1, keepdims=True) * t[:, None] * factor


def derivative(z, t, *others):
    *classes, dz = others
    factor = classes[0][:, :1] if classes else 1
    mean, dmean = (np.mean(each, axis=1, keepdims=True) for each in (z, dz))
    return (3 * np.cos(3 * z) * dz * mean + np.sin(3 * z) * dmean) * t[:, None] * factor


@pytest.fixture
def point():
    random = np.random.default_rng(1)
    return random.standard_normal((4, 6)), random.uniform(0.1, 0.9, 4)


@pytest.mark.parametrize("others", [(), (np.eye(4, 2, dtype=np.float32) + 1,)])
def test_a_right_derivative_has_a_small_error(point, others):
    assert derivative_error(function, derivative, *point, others) < 1e-4


@pytest.mark.parametrize("exponent", [0, 3, 6, 7])
def test_fast_sines_of_fourier_features(point, exponent):
    factor = 2 * np.pi * 2**exponent

    def waves(z, t):
        return z + 0.3 * np.sin(factor * z)

    def slope(z, t, dz):
        return dz * (1 + 0.3 * factor * np.cos(factor * z))

    assert derivative_error(waves, slope, *point) < 0.01


def test_arguments_are_those_that_jax_passes(point):
    dtypes = []

    def recorded(*given):
        dtypes.append([each.dtype for each in given])
        return derivative(*given)

    derivative_error(function, recorded, *point, [np.eye(4)[:, :2] + 1])
    assert dtypes == [[np.float32] * 4]


@pytest.mark.parametrize("factor", [0.0, 0.9, -1.0])
def test_a_wrong_factor_is_the_error(point, factor):
    found = derivative_error(function, lambda *given: factor * derivative(*given), *point)
    np.testing.assert_allclose(found, 1 - factor, rtol=0.1)  # the coarsest step may be the closest


def test_a_derivative_in_one_wrong_place_is_noticed(point):
    def without_the_mean(z, t, dz):
        return derivative(z, t, dz - np.mean(dz, axis=1, keepdims=True))

    assert derivative_error(function, without_the_mean, *point) > 0.05


def test_what_is_not_finite_is_no_small_error(point):
    def broken(z, t, dz):
        return derivative(z, t, dz) * np.nan

    assert not derivative_error(function, broken, *point) < 1
