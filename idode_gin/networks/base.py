"""The contract of a network."""

import abc
from typing import Any, TypeAlias

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from idode_gin import types

Conditioning: TypeAlias = Float[Array, "batch conditioning"]
"""K numbers per image."""


class AbstractNetwork(abc.ABC):
    """A function `(z, time, conditioning) -> F` with parameters held by the caller.

    Contract:
        F has the shape and dtype of z, and F of one image depends on that image alone.
        Nothing random happens without keys.
        Schedule and parameterization are unknown here: what F means is decided elsewhere.
    """

    @abc.abstractmethod
    def init(self, key: types.PRNGKey, image_shape: tuple[int, int, int]) -> types.Params:
        """Fresh float32 parameters for images of shape (height, width, channels)."""

    def logical_axes(self, image_shape: tuple[int, int, int]) -> Any:
        """Names of the parameters' axes, for a partitioner's rules.

        Returns:
            A tree like the parameters; each leaf is a `PartitionSpec` with one name, or None, per
            axis, no name twice. Here: None everywhere, and such a parameter is never split.
        """
        params = jax.eval_shape(lambda: self.init(jax.random.key(0), image_shape))
        return jax.tree.map(lambda leaf: PartitionSpec(*[None] * leaf.ndim), params)

    @property
    def coarse_dtype(self) -> str | None:
        """Name of what the network computes in where that is coarser than float32; here, never."""
        return None

    def in_full_precision(self) -> "AbstractNetwork":
        """The same function of the same parameters, computed in float32 or better."""
        return self

    @abc.abstractmethod
    def __call__(
        self,
        params: types.Params,
        z: types.Images,
        time: types.PerExample,
        conditioning: Conditioning,
        key: types.PRNGKeys | None = None,
    ) -> types.Images:
        """The raw output F.

        Args:
            params: what `init` returned, possibly trained since.
            z: latents.
            time: gamma as a fraction of its range, in [0, 1].
            conditioning: K numbers per image; zeros where the dataset has none.
            key: one key per image, for dropout; None switches dropout off.
        """
