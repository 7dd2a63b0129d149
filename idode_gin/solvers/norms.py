"""Norms of the error of a step: one number per example."""

import abc
import dataclasses
from typing import Any, final

import jax
import jax.numpy as jnp
from jaxtyping import Array

from idode_gin import numerics, types


class AbstractNorm(abc.ABC):
    """Norm of a scaled error; entries within the tolerance are at most one."""

    @abc.abstractmethod
    def __call__(self, scaled: Any) -> types.PerExample:
        """Return `[B]` for a pytree with leaves `[B, ...]`."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class EveryPart(AbstractNorm):
    """The largest root mean square of a leaf.

    A single number such as a log-density counts as much as all pixels together.
    """

    def __call__(self, scaled: Any) -> types.PerExample:
        """Return the maximum over leaves."""
        return jnp.max(jnp.stack([_rms(leaf) for leaf in jax.tree.leaves(scaled)]), axis=0)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstPart(AbstractNorm):
    """The root mean square of the first leaf: the latent without its log-density."""

    def __call__(self, scaled: Any) -> types.PerExample:
        """Return the norm of the first leaf."""
        return _rms(jax.tree.leaves(scaled)[0])


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooled(AbstractNorm):
    """The root mean square over all entries of all leaves.

    This is the norm of SciPy's `solve_ivp` for a state concatenated with its log-density.
    """

    def __call__(self, scaled: Any) -> types.PerExample:
        """Return the norm over all leaves."""
        leaves = jax.tree.leaves(scaled)
        total = sum(numerics.sum_pixels(leaf**2) for leaf in leaves)
        return jnp.sqrt(total / sum(numerics.num_dims(leaf) for leaf in leaves))


def _rms(leaf: Array) -> types.PerExample:
    return jnp.sqrt(numerics.sum_pixels(leaf**2) / numerics.num_dims(leaf))
