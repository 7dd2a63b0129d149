"""Independent uniform quantiles."""

import dataclasses
from typing import final

import jax
from jaxtyping import Array, Integer

from idode_gin import numerics, types
from idode_gin.time_samplers.quantiles import base


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Independent(base.AbstractQuantiles):
    """An independent uniform number for every example."""

    def draw(
        self, key: types.PRNGKey, position: Integer[Array, " batch"], global_batch_size: int
    ) -> types.PerExample:
        """Return independent uniform numbers, `[B]`; the global batch size is not used."""
        keys = numerics.fold_in_each(key, position)
        return jax.vmap(lambda each: jax.random.uniform(each, dtype=numerics.float_dtype()))(keys)
