"""A network with arithmetic coarser than float32."""

import dataclasses

import jax

from idode_gin.networks.base import AbstractNetwork


@dataclasses.dataclass(frozen=True)
class Coarse(AbstractNetwork):
    """Rounds the output of another network to bfloat16."""

    fine: AbstractNetwork
    coarse_dtype = "bfloat16"

    def init(self, key, image_shape):
        return self.fine.init(key, image_shape)

    def in_full_precision(self):
        return self.fine

    def __call__(self, *args):
        # XLA may remove a pair of `astype`.
        return jax.lax.reduce_precision(self.fine(*args), exponent_bits=8, mantissa_bits=7)
