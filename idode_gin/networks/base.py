"""The interface of a network."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from idode_gin import types

Conditioning: TypeAlias = Float[Array, "batch conditioning"]
"""K numbers per image."""


class AbstractNetwork(abc.ABC):
    """A function `(z, time, conditioning) -> F` with parameters held by the caller.

    Contract:
        F has the shape and dtype of z, and F of one image depends on that image alone.
        The function is deterministic without keys.
        Schedule and parameterization define the meaning of F, not the network.

    A checkpoint is refused if a field of the network differs from that of its training, unless it
    is one of `computation`.
    """

    computation: ClassVar[tuple[str, ...]] = ("dropout_rate", "remat", "scan", "dtype")
    """Fields, also of a part such as a module, that say how F is computed: trained parameters keep
    their meaning under any value."""
    conditioning_size: int = 1
    """K, the numbers per image in `conditioning` beside those of its class."""
    num_classes: int = 0
    """C, the classes of labels; 0 for none."""
    needs_whole_channels: bool = False
    """True if all channels of an image must be on one device."""

    @abc.abstractmethod
    def init(self, key: types.PRNGKey, image_shape: tuple[int, int, int]) -> types.Params:
        """Initialize parameters, a dict of float32 arrays, for images of (H, W, C)."""

    def logical_axes(self, image_shape: tuple[int, int, int]) -> Any:
        """Return the axis names of all parameters, for the rules of a partitioner.

        Returns:
            A tree like the parameters; each leaf is a `PartitionSpec` with one name, or None, per
            axis, no name twice. By default None everywhere, so that no parameter is split.
        """
        params = jax.eval_shape(lambda: self.init(jax.random.key(0), image_shape))
        return jax.tree.map(lambda leaf: PartitionSpec(*[None] * leaf.ndim), params)

    @property
    def coarse_dtype(self) -> str | None:
        """Name of the arithmetic if coarser than float32, else None (the default)."""
        return None

    def in_full_precision(self) -> "AbstractNetwork":
        """Return this function of the same parameters, computed in float32 or better."""
        return self

    def in_reverse_mode(self) -> Callable[..., types.Images]:
        """Return this function for a gradient alone: it may have no forward-mode derivative."""
        return self

    def idle_settings(self, *, reverse_mode_only: bool) -> list[str]:
        """Return a sentence for each setting without effect on a training; none by default.

        Args:
            reverse_mode_only: the loss takes no forward-mode derivative of the network.
        """
        del reverse_mode_only
        return []

    @abc.abstractmethod
    def __call__(
        self,
        params: types.Params,
        z: types.Images,
        time: types.PerExample,
        conditioning: Conditioning,
        key: types.PRNGKeys | None = None,
    ) -> types.Images:
        """Return the raw output F.

        Args:
            params: parameters from `init`, or trained.
            z: latents.
            time: gamma as a fraction of its range, in [0, 1].
            conditioning: K numbers per image, zeros if the dataset has none; then one for each
                class of `num_classes`: 1 for the image's own.
            key: one key per image, for dropout; None for no dropout.
        """


def coarse(dtype: Any) -> str | None:
    """Return the name of a dtype of fewer than 32 bits; None for others and for no dtype."""
    is_coarse = dtype is not None and jnp.finfo(dtype).bits < 32
    return str(jnp.dtype(dtype)) if is_coarse else None
