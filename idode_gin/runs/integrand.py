"""The integrand of the bound by gamma, as training and evaluation plot it."""

from collections.abc import Callable, Iterable

import jax
import numpy as np

from idode_gin import types
from idode_gin.models import DiffusionODE

IMAGES = 32
"""Images whose integrand is computed together, on one device."""
_POINTS = 41

Compute = Callable[
    [types.Params, Iterable[types.Batch], types.PRNGKey], tuple[np.ndarray, np.ndarray]
]


def of_batches(model: DiffusionODE) -> Compute:
    """Return a function `(params, batches, key) -> (gammas, integrand at them)`.

    The integrand is the mean over all images, in bits per dim per nat of gamma. Batches must be of
    one size and without padding. It is computed on one device of this process.
    """
    gammas = np.linspace(model.end.gamma_number, model.gamma_max, _POINTS)
    compiled = jax.jit(model.integrand)

    def compute(
        params: types.Params, batches: Iterable[types.Batch], key: types.PRNGKey
    ) -> tuple[np.ndarray, np.ndarray]:
        params = jax.device_get(params)
        found = [np.asarray(compiled(params, each, key, gammas)) for each in batches]
        return gammas, np.mean(found, axis=0)

    return compute
