"""How large the error of a step is: one number per example."""

import abc
import dataclasses
from typing import Any, final

import jax
import jax.numpy as jnp
from jaxtyping import Array

from idode_gin import numerics, types


class AbstractNorm(abc.ABC):
    """Size of a scaled error, whose entries are at most one where they are tolerable."""

    @abc.abstractmethod
    def __call__(self, scaled: Any) -> types.PerExample:
        """`[B]` of a pytree with leaves `[B, ...]`."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class EveryPart(AbstractNorm):
    """The largest root mean square over the leaves.

    A single number such as a log-density counts as much as all pixels together.
    """

    def __call__(self, scaled: Any) -> types.PerExample:
        """The largest over leaves."""
        return jnp.max(jnp.stack([_rms(leaf) for leaf in jax.tree.leaves(scaled)]), axis=0)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstPart(AbstractNorm):
    """The root mean square of the first leaf alone: of the state, without its log-density."""

    def __call__(self, scaled: Any) -> types.PerExample:
        """Of the first leaf."""
        return _rms(jax.tree.leaves(scaled)[0])


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooled(AbstractNorm):
    """The root mean square over all entries of all leaves, as if they were one vector.

    What `solve_ivp` of SciPy does with a state and its log-density written behind each other.
    """

    def __call__(self, scaled: Any) -> types.PerExample:
        """Over everything."""
        leaves = jax.tree.leaves(scaled)
        total = sum(numerics.sum_pixels(leaf**2) for leaf in leaves)
        return jnp.sqrt(total / sum(numerics.num_dims(leaf) for leaf in leaves))


def _rms(leaf: Array) -> types.PerExample:
    return jnp.sqrt(numerics.sum_pixels(leaf**2) / numerics.num_dims(leaf))
