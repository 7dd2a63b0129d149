"""A network whose arithmetic is coarse."""

import dataclasses

import jax

from idode_gin.networks.base import AbstractNetwork


@dataclasses.dataclass(frozen=True)
class Coarse(AbstractNetwork):
    """Another network, its output rounded to bfloat16."""

    fine: AbstractNetwork
    coarse_dtype = "bfloat16"

    def init(self, key, image_shape):
        return self.fine.init(key, image_shape)

    def in_full_precision(self):
        return self.fine

    def __call__(self, *args):
        # There and back by `astype` may be optimized away.
        return jax.lax.reduce_precision(self.fine(*args), exponent_bits=8, mantissa_bits=7)
