"""Noise prediction."""

import dataclasses
from typing import final

import jax.numpy as jnp

from idode_gin import types
from idode_gin.parameterizations import base
from idode_gin.schedules.base import AbstractSchedule


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(base.AbstractNoiseMultiple):
    """The network predicts the noise itself: F* = eps, so a = 1 and b = 0.

    Refs: VDM; DDPM.
    """

    def noise_scale(self, schedule: AbstractSchedule, gamma: types.Gamma) -> types.Gamma:
        """Return a = 1."""
        return jnp.ones_like(gamma)
