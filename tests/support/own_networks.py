"""Small flax modules, as a user would write them."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx


class LinenNet(nn.Module):
    """A convolution before and after time and conditioning are added."""

    width: int = 8
    dtype: Any = None

    @nn.compact
    def __call__(self, z, time, conditioning):
        inputs = jnp.concatenate([time[:, None], conditioning], axis=-1)
        vector = nn.Dense(self.width, dtype=self.dtype, name="dense")(inputs)
        h = nn.Conv(self.width, (3, 3), dtype=self.dtype, name="first")(z)
        h = nn.swish(h + vector[:, None, None])
        return nn.Conv(z.shape[-1], (3, 3), dtype=self.dtype, name="second")(h) + z


class NNXNet(nnx.Module):
    """The same function, for images of one channel and one number of conditioning."""

    def __init__(self, width: int = 8, *, rngs: nnx.Rngs):
        self.dense = nnx.Linear(2, width, rngs=rngs)
        self.first = nnx.Conv(1, width, (3, 3), rngs=rngs)
        self.second = nnx.Conv(width, 1, (3, 3), rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, z, time, conditioning):
        vector = self.dense(jnp.concatenate([time[:, None], conditioning], axis=-1))
        h = self.dropout(nnx.swish(self.first(z) + vector[:, None, None]))
        return self.second(h) + z


class ListedNet(nnx.Module):
    """Layers in a list, whose parameters have numbers for names."""

    def __init__(self, *, rngs: nnx.Rngs):
        layers = [nnx.Conv(1, 1, (1, 1), rngs=rngs) for _ in range(11)]
        self.layers = nnx.List(layers) if hasattr(nnx, "List") else layers

    def __call__(self, z, time, conditioning):
        for each in self.layers:
            z = each(z)
        return z


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, z, time, conditioning):
        return nn.BatchNorm(use_running_average=True)(z)


class NormalizedNNX(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(1, rngs=rngs)

    def __call__(self, z, time, conditioning):
        return self.norm(z)


class Flat(nn.Module):
    @nn.compact
    def __call__(self, z, time, conditioning):
        return z.reshape(z.shape[0], -1)
