"""A network that holds a function, for the tests of configurations."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from idode_gin.networks import base


def times(value: float, factor: float = 1.0) -> float:
    return value * factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled(base.AbstractNetwork):
    function: Callable[..., float] = times

    def init(self, key, image_shape):
        return {"scale": jnp.ones(())}

    def __call__(self, params, z, time, conditioning, key=None):
        return z * self.function(params["scale"])
