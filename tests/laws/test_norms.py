"""Norms of an error: what a step of each part counts for."""

import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.solvers.norms import AbstractNorm, EveryPart, FirstPart, Pooled

from . import discovery

LATENT = jnp.asarray([[0.5, -0.5, 0.5, -0.5], [3.0, 3.0, -3.0, 3.0]]).reshape(2, 2, 2, 1)
"""Four pixels of two examples, with root mean squares of 0.5 and 3."""
LOG_DENSITY = jnp.asarray([[2.0], [-1.0]])


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        (EveryPart(), [2.0, 3.0]),
        (FirstPart(), [0.5, 3.0]),
        (Pooled(), [np.sqrt((4 * 0.25 + 4) / 5), np.sqrt((4 * 9 + 1) / 5)]),
    ],
)
def test_each_norm_of_a_latent_and_its_log_density(norm, expected):
    np.testing.assert_allclose(norm((LATENT, LOG_DENSITY)), expected, rtol=1e-6)


@discovery.each("norm", AbstractNorm)
def test_within_the_tolerance_everywhere_is_at_most_one(norm):
    ones = jnp.ones((2, 2, 2, 1))
    np.testing.assert_allclose(norm((ones, ones[:, 0, 0])), 1.0, rtol=1e-6)
