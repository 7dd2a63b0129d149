"""A U-Net of constant resolution."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from idode_gin import checks, types
from idode_gin.networks import base, blocks, embeddings, layers, remat, stacking

_LARGEST_EXPONENT = 32


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet(base.AbstractNetwork):
    """U-Net of VDM: ResNet blocks at full resolution, skips, attention in the middle, `F + z`.

        down    `levels` blocks, whose outputs are kept
        middle  block, attention, block
        up      `levels + 1` blocks, each with one kept output as additional input

    Time and conditioning enter every block through one vector: the embedding of time and the
    conditioning, through two dense layers of 4 * channels.

    Args:
        channels: channels of every block; published 128 (CIFAR-10) and 256.
        levels: blocks of the downward path; published 32.
        groups: groups of every GroupNorm; must divide `channels`.
        min_channels_per_group: lower bound of `channels / groups`. With one channel per group, the
            normalization after the conditioning is added removes it exactly, and the output does
            not depend on time. Use 1 to load published networks that have this flaw.
        fourier_exponents: k of the input features sin, cos(2 pi 2^k z); () for none.
        attention_everywhere: attention after every block, not only in the middle.
        attention_heads: number of heads; must divide `channels`.
        dropout_rate: in [0, 1), inside every block, applied only if keys are given; rounded to a
            multiple of 2^-16.
        conditioning_size: K, the numbers per image in `conditioning` beside those of its class.
        num_classes: C, classes of labels; each adds a number to `conditioning`, 1 for the image's
            own class and 0 for the others, whose weights in the first dense layer are a learned
            embedding of the class. 0 for no labels.
        time_embedding_scale: radians of the fastest sine over the whole range of time.
        remat: which activations of a block the gradient stores, a name in `remat.POLICIES`: "full"
            recomputes the whole block, "convolutions" recomputes everything but convolutions. None
            stores everything.
        scan: run the blocks of the downward and of the upward path in loops over parameters stacked
            along a first axis, so that compile time does not grow with `levels`. `stacking`
            converts between the two forms; initial values differ as with another seed. Leave it
            off for long runs: on a GPU a loop moves twice the bytes, and on a CPU the gradient of a
            convolution in a loop is about 20 times slower.
        fused: in the first-order loss, on an NVIDIA GPU from Ampere on, compute norm, swish and
            dropout in one kernel (`norm_swish`), and attention in cuDNN's if `dtype` has 16 bits.
            It changes no numbers elsewhere: the kernels have no forward-mode derivative, which
            scores and the second-order loss take. It needs images of a multiple of 16 pixels, and
            the sizes that `norm_swish.check` names.
        dtype: type of the blocks' arithmetic, such as "bfloat16"; None for the dtype of z.
            First and last layers, normalization statistics and softmax stay in float32 or better,
            and so do the parameters.

    Raises:
        ValueError: if sizes are not divisible as required, or a number is out of range.
    Refs: VDM, appendix on the score network; i-DODE, experimental settings.
    """

    computation = (*base.AbstractNetwork.computation, "min_channels_per_group", "fused")

    channels: int = 128
    levels: int = 32
    groups: int = 32
    min_channels_per_group: int = 2
    fourier_exponents: tuple[int, ...] = (6, 7)
    attention_everywhere: bool = False
    attention_heads: int = 1
    dropout_rate: float = 0.0
    conditioning_size: int = 1
    num_classes: int = 0
    time_embedding_scale: float = 1000.0
    remat: str | None = None
    scan: bool = False
    dtype: str | None = None
    fused: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "fourier_exponents", tuple(self.fourier_exponents))
        for exponent in self.fourier_exponents:
            checks.check_integer("fourier_exponents", exponent, at_least=0)
            if exponent > _LARGEST_EXPONENT:
                raise ValueError(
                    f"`fourier_exponents` must be at most {_LARGEST_EXPONENT}: float32 has no more "
                    f"bits of a pixel, got {exponent}."
                )
        for name in ("channels", "groups", "attention_heads"):
            checks.check_count(name, getattr(self, name))
        checks.check_positive("time_embedding_scale", self.time_embedding_scale)
        for name in ("levels", "conditioning_size", "num_classes"):
            checks.check_integer(name, getattr(self, name), at_least=0)
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
        remat.check(self.remat)
        _check_dtype(self.dtype)
        if self.fused:
            from idode_gin.networks import norm_swish  # imports Pallas

            norm_swish.check(self.channels, self.groups)

    def init(self, key: types.PRNGKey, image_shape: tuple[int, int, int]) -> types.Params:
        """Initialize parameters: LeCun normal kernels, zero if a block must start as identity."""
        return layers.unboxed(self._boxed(key, image_shape))

    def logical_axes(self, image_shape: tuple[int, int, int]) -> Any:
        """Return the axis names of all parameters, which `layers` defines."""
        height, width, channels = image_shape
        return _axes(self, (height, width, channels))

    @property
    def coarse_dtype(self) -> str | None:
        """`dtype` if it has fewer than 32 bits, else None."""
        return base.coarse(self.dtype)

    def in_full_precision(self) -> "UNet":
        """Return the network with blocks in the dtype of z."""
        return self if self.coarse_dtype is None else dataclasses.replace(self, dtype=None)

    @property
    def needs_whole_channels(self) -> bool:  # type: ignore[override]
        """True if all channels of an image must be on one device."""
        return self.fused

    def idle_settings(self, *, reverse_mode_only: bool) -> list[str]:
        """Return why `fused` has no effect, if it has none."""
        if not self.fused or (reverse_mode_only and blocks.can_fuse()):
            return []
        if reverse_mode_only:
            needed = "it needs an NVIDIA GPU from Ampere on"
            return [f"`UNet.fused` has no effect on this device: {needed}."]
        return [
            "`UNet.fused` has no effect: the loss may take forward-mode derivatives, and the "
            "kernels have none (its `reverse_mode_only` is False)."
        ]

    @property
    def _width(self) -> int:
        return self.conditioning_size + self.num_classes

    def _boxed(self, key: types.PRNGKey, image_shape: tuple[int, int, int]) -> Any:
        """Initialize parameters that carry names."""
        z = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        time = jax.ShapeDtypeStruct((1,), jnp.float32)
        conditioning = jax.ShapeDtypeStruct((1, self._width), jnp.float32)
        # Lazy: parameters are drawn without running the network.
        return _LinenUNet(self, fused=False).lazy_init(key, z, time, conditioning, None)["params"]

    def __call__(
        self,
        params: types.Params,
        z: types.Images,
        time: types.PerExample,
        conditioning: base.Conditioning,
        key: types.PRNGKeys | None = None,
        *,
        in_kernels: bool = False,
    ) -> types.Images:
        """Return the raw output F, in the dtype of z; see `in_reverse_mode` for `in_kernels`."""
        expected = (z.shape[0], self._width)
        if conditioning.shape != expected:
            raise ValueError(
                "`conditioning` must be [batch, conditioning_size + num_classes], got shape "
                f"{conditioning.shape} where {expected} was expected. Without conditioning pass "
                "zeros of that shape."
            )
        stacking.check(params, self.scan)
        network = _LinenUNet(self, fused=in_kernels)
        output = network.apply({"params": params}, z, time, conditioning, key)
        return jnp.asarray(output)

    def in_reverse_mode(self) -> Callable[..., types.Images]:
        """Return this function, with the kernels of `fused` where they run."""
        return functools.partial(self.__call__, in_kernels=self.fused and blocks.can_fuse())


class _LinenUNet(nn.Module):
    """`UNet` as a flax module."""

    config: UNet
    fused: bool

    @nn.compact
    def __call__(
        self, z: Array, time: Array, conditioning: Array, keys: types.PRNGKeys | None
    ) -> Array:
        config = self.config
        edge = z.dtype  # of first and last layers; blocks may use a coarser dtype
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

        waves = embeddings.fourier_features(z, config.fourier_exponents).astype(edge)
        h = jnp.concatenate([z, waves], axis=-1)
        conv_in = layers.conv(config.channels, ("features", "channels"), edge, "conv_in")
        h = conv_in(h).astype(inner)
        run = _Stages(config, self.fused, inner, vector, keys)
        h, skips = run.down(h)
        for number, attention in enumerate((True, False)):
            h = run.one("middle", number, attention, h)
        h = run.up(h, skips)
        h = nn.swish(layers.group_norm(config.groups, "channels", edge, "norm_out")(h))
        axes = ("channels", "image")
        conv_out = layers.conv(z.shape[-1], axes, edge, "conv_out", kernel_init=layers.ZEROS)
        return conv_out(h) + z


@dataclasses.dataclass(frozen=True)
class _Stages:
    """The blocks, unrolled or, with `scan`, in loops."""

    config: UNet
    fused: bool
    dtype: Any
    vector: Array
    keys: types.PRNGKeys | None

    def down(self, h: Array) -> tuple[Array, Any]:
        """Return the features after the downward path, and those kept, the input first."""
        count, kept = self.config.levels, [h]
        if self.config.scan:
            if not count:
                return h, h[None]
            h, after = self._loop("down", h, (jnp.arange(count),), count)
            return h, jnp.concatenate([kept[0][None], after])
        for number in range(count):
            h = self.one("down", number, self.config.attention_everywhere, h)
            kept.append(h)
        return h, kept

    def up(self, h: Array, skips: Any) -> Array:
        """Return the features after the upward path, which uses `skips`, the last first."""
        count = self.config.levels + 1
        if self.config.scan:
            return self._loop("up", h, (jnp.arange(count), skips[::-1]), count)[0]
        for number in range(count):
            h = self.one("up", number, self.config.attention_everywhere, h, skips[-1 - number])
        return h

    def one(
        self, part: str, number: int, attention: bool, h: Array, skip: Array | None = None
    ) -> Array:
        """Return the block `part_number`."""
        stage = self._module(f"{part}_{number}", attention)
        return stage(h, self.vector, _keys_of_stage(self.keys, part, number), skip)

    def _loop(self, part: str, h: Array, each: Any, count: int) -> tuple[Array, Array]:
        """Run all blocks of one part; return the last output and all, `[count, B, ...]`."""

        def body(stage: Any, h: Array, each: Any, vector: Array, keys: Any) -> tuple[Array, Array]:
            number, *skip = each
            h = stage(h, vector, _keys_of_stage(keys, part, number), *skip)
            return h, h

        run = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=count,
            metadata_params={nn.PARTITION_NAME: stacking.AXIS},
        )
        stage = self._module(part, self.config.attention_everywhere)
        return run(stage, h, each, self.vector, self.keys)

    def _module(self, name: str, attention: bool) -> Any:
        config = self.config
        return remat.lift(blocks.Stage, config.remat, in_loop=config.scan)(
            channels=config.channels,
            groups=config.groups,
            dropout_rate=config.dropout_rate,
            attention=attention,
            attention_heads=config.attention_heads,
            dtype=self.dtype,
            fused=self.fused,
            name=name,
        )


@functools.lru_cache(maxsize=4)  # tracing a large network takes seconds
def _axes(network: UNet, image_shape: tuple[int, int, int]) -> Any:
    boxed = jax.eval_shape(lambda: network._boxed(jax.random.key(0), image_shape))
    return nn.get_partition_spec(boxed)


def _keys_of_stage(
    keys: types.PRNGKeys | None, part: str, number: int | Array
) -> types.PRNGKeys | None:
    """Return one key per example, distinct for every stage."""
    if keys is None:
        return None
    stage = 3 * number + ("down", "middle", "up").index(part)
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
