"""Random probe vectors for trace estimates: zero mean, identity covariance."""

import abc
import dataclasses
from typing import final

import jax
from jaxtyping import Array

from idode_gin import numerics, types


class AbstractProbe(abc.ABC):
    """A distribution with zero mean and identity covariance."""

    @abc.abstractmethod
    def sample(self, key: types.PRNGKey, shape: tuple[int, ...]) -> Array:
        """Draw one probe of `shape`."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rademacher(AbstractProbe):
    """Random signs: the least variance among independent entries."""

    def sample(self, key: types.PRNGKey, shape: tuple[int, ...]) -> Array:
        """Draw +1 or -1 of `shape`."""
        return jax.random.rademacher(key, shape, dtype=numerics.float_dtype())


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian(AbstractProbe):
    """Standard normal entries."""

    def sample(self, key: types.PRNGKey, shape: tuple[int, ...]) -> Array:
        """Draw standard normal numbers of `shape`."""
        return jax.random.normal(key, shape, dtype=numerics.float_dtype())
