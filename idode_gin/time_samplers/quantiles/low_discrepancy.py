"""Quantiles spread evenly over the global batch."""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer

from idode_gin import numerics, types
from idode_gin.time_samplers.quantiles import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class LowDiscrepancy(base.AbstractQuantiles):
    """A common uniform offset and equal spacing: u_i = (u_0 + i / B) mod 1.

    B is the global batch size, so the strata do not depend on the mesh or the microbatches.
    Refs: VDM, low-discrepancy sampler.
    """

    def draw(
        self, key: types.PRNGKey, position: Integer[Array, " batch"], global_batch_size: int
    ) -> types.PerExample:
        """Return stratified uniform numbers, `[B]`."""
        offset = jax.random.uniform(key, dtype=numerics.float_dtype())
        return jnp.mod(offset + position / global_batch_size, 1.0)
