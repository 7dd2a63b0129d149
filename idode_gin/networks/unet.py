"""The U-Net of constant resolution."""

import dataclasses
from typing import Any, final

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from idode_gin import checks, types
from idode_gin.networks import base, blocks, embeddings, layers


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet(base.AbstractNetwork):
    """VDM's U-Net: ResNet blocks at full resolution, skips, attention in the middle, `F + z`.

        down    `levels` blocks, each output kept
        middle  block, attention, block
        up      `levels + 1` blocks, each fed one kept output beside its input

    Time and conditioning enter every block through one vector: the embedding of time and the
    conditioning, through two dense layers of 4 * channels.

    Args:
        channels: of every block; published 128 (CIFAR-10) and 256.
        levels: blocks on the way down; published 32.
        groups: of every GroupNorm; must divide `channels`.
        min_channels_per_group: what `channels / groups` must reach. With one channel per group the
            normalization after the conditioning is added removes it exactly, and the network
            cannot see time. 1 loads published networks that have this flaw.
        fourier_exponents: k of the input features sin, cos(2 pi 2^k z); () switches them off.
        attention_everywhere: attention after every block on the way down and up as well.
        attention_heads: must divide `channels`.
        dropout_rate: in [0, 1), inside every block, only where keys are given.
        conditioning_size: K, the numbers per image in `conditioning`.
        time_embedding_scale: radians of the fastest sine over the whole range of time.
        dtype: of the blocks' arithmetic, such as "bfloat16"; None computes in the dtype of z.
            First and last layers, normalization statistics and softmax stay in float32 or better,
            and so do the parameters.

    Raises:
        ValueError: if sizes do not divide as said, or a number is out of range.
    Refs: VDM, appendix on the score network; i-DODE, experimental settings.
    """

    channels: int = 128
    levels: int = 32
    groups: int = 32
    min_channels_per_group: int = 2
    fourier_exponents: tuple[int, ...] = (6, 7)
    attention_everywhere: bool = False
    attention_heads: int = 1
    dropout_rate: float = 0.0
    conditioning_size: int = 1
    time_embedding_scale: float = 1000.0
    dtype: str | None = None

    def __post_init__(self) -> None:
        """Checks the arguments."""
        object.__setattr__(self, "fourier_exponents", tuple(self.fourier_exponents))
        for name in ("channels", "groups", "attention_heads", "time_embedding_scale"):
            checks.check_positive(name, getattr(self, name))
        for name in ("levels", "conditioning_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` cannot be negative, got {getattr(self, name)}.")
        if self.channels < 4:
            raise ValueError(
                f"`channels` must be at least 4, got {self.channels}: the embedding of time needs "
                "two frequencies, each with a sine and a cosine."
            )
        if self.channels % 2:
            raise ValueError(f"`channels` must be even, got {self.channels}.")
        checks.check_multiple("channels", self.channels, "groups", self.groups)
        checks.check_multiple("channels", self.channels, "attention_heads", self.attention_heads)
        _check_group_size(self.channels, self.groups, self.min_channels_per_group)
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"`dropout_rate` must be in [0, 1), got {self.dropout_rate}.")
        _check_dtype(self.dtype)

    def init(self, key: types.PRNGKey, image_shape: tuple[int, int, int]) -> types.Params:
        """Fresh parameters: LeCun normal kernels, zero where a block must start as identity."""
        return layers.unboxed(self._boxed(key, image_shape))

    def logical_axes(self, image_shape: tuple[int, int, int]) -> Any:
        """Names of the parameters' axes; what they mean is said in `layers`."""
        boxed = jax.eval_shape(lambda: self._boxed(jax.random.key(0), image_shape))
        return layers.axis_names(boxed)

    def _boxed(self, key: types.PRNGKey, image_shape: tuple[int, int, int]) -> Any:
        """Fresh parameters, each with its names."""
        z = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        time = jax.ShapeDtypeStruct((1,), jnp.float32)
        conditioning = jax.ShapeDtypeStruct((1, self.conditioning_size), jnp.float32)
        # Lazy: parameters are drawn without running the network once.
        return _LinenUNet(self).lazy_init(key, z, time, conditioning, None)["params"]

    def __call__(
        self,
        params: types.Params,
        z: types.Images,
        time: types.PerExample,
        conditioning: base.Conditioning,
        key: types.PRNGKeys | None = None,
    ) -> types.Images:
        """The raw output F, in the dtype of z."""
        expected = (z.shape[0], self.conditioning_size)
        if conditioning.shape != expected:
            raise ValueError(
                "`conditioning` must be [batch, conditioning_size], got shape "
                f"{conditioning.shape} where {expected} was expected. Without conditioning pass "
                "zeros of that shape."
            )
        output = _LinenUNet(self).apply({"params": params}, z, time, conditioning, key)
        return jnp.asarray(output)


class _LinenUNet(nn.Module):
    """The same as `UNet`, in flax's terms."""

    config: UNet

    @nn.compact
    def __call__(
        self, z: Array, time: Array, conditioning: Array, keys: types.PRNGKeys | None
    ) -> Array:
        config = self.config
        edge = z.dtype  # first and last layers; the blocks between may be coarser
        inner = edge if config.dtype is None else jnp.dtype(config.dtype)
        embedding = embeddings.timestep_embedding(
            time, config.channels, config.time_embedding_scale
        )
        vector = jnp.concatenate([embedding.astype(edge), conditioning.astype(edge)], axis=-1)
        for i in range(2):
            axes = ("embedding_in" if i else "features", "embedding")
            dense = layers.dense(4 * config.channels, axes, edge, f"dense_{i}")
            vector = nn.swish(dense(vector))
        vector = vector.astype(inner)

        def stage(name: str, attention: bool, x: Array) -> Array:
            module = blocks.Stage(
                channels=config.channels,
                groups=config.groups,
                dropout_rate=config.dropout_rate,
                attention=attention,
                attention_heads=config.attention_heads,
                dtype=inner,
                name=name,
            )
            return module(x, vector, _keys_of_stage(keys, name))

        everywhere = config.attention_everywhere
        h = jnp.concatenate([z, _fourier(z, config.fourier_exponents)], axis=-1)
        conv_in = layers.conv(config.channels, ("features", "channels"), edge, "conv_in")
        h = conv_in(h).astype(inner)
        skips = [h]
        for i in range(config.levels):
            h = stage(f"down_{i}", everywhere, h)
            skips.append(h)
        h = stage("middle_0", True, h)
        h = stage("middle_1", False, h)
        for i in range(config.levels + 1):
            h = stage(f"up_{i}", everywhere, jnp.concatenate([h, skips.pop()], axis=-1))
        h = nn.swish(layers.group_norm(config.groups, "channels", edge, "norm_out")(h))
        axes = ("channels", "image")
        conv_out = layers.conv(z.shape[-1], axes, edge, "conv_out", kernel_init=layers.ZEROS)
        return conv_out(h) + z


def _fourier(z: Array, exponents: tuple[int, ...]) -> Array:
    return embeddings.fourier_features(z, exponents).astype(z.dtype)


def _keys_of_stage(keys: types.PRNGKeys | None, name: str) -> types.PRNGKeys | None:
    """One key per example, different for every stage."""
    if keys is None:
        return None
    part, number = name.split("_")
    stage = 3 * int(number) + ("down", "middle", "up").index(part)
    return jax.vmap(lambda key: jax.random.fold_in(key, stage))(keys)


def _check_group_size(channels: int, groups: int, least: int) -> None:
    if channels // groups < least:
        raise ValueError(
            f"`channels / groups` must be at least {least} (`min_channels_per_group`), got "
            f"channels={channels} and groups={groups}. With one channel per group normalization "
            "removes the time conditioning exactly. Use fewer groups or more channels, or set "
            "min_channels_per_group=1 to load a published network that has this flaw."
        )


def _check_dtype(dtype: str | None) -> None:
    if dtype is None:
        return
    try:
        known = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        known = False
    if not known:
        raise ValueError(
            f"`dtype` must name a floating-point type such as 'bfloat16' or be None, got {dtype!r}."
        )
