"""Importance-sampled time in closed form, for velocity prediction on the VP path."""

import dataclasses
from typing import ClassVar, final

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin import numerics, types
from idode_gin.schedules.time.base import AbstractTime
from idode_gin.time_samplers import base
from idode_gin.time_samplers.quantiles.base import AbstractQuantiles
from idode_gin.time_samplers.quantiles.low_discrepancy import LowDiscrepancy


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class VPVelocityImportance(base.AbstractTimeSampler):
    """Sampling density sigmoid(-gamma) / Z, proportional to a^2 with a = alpha of the VP path.

        Z = log((1 + e^{-gamma_min}) / (1 + e^{-gamma_max}))
        gamma(u) = -log(e^{-Z u} (1 + e^{-gamma_min}) - 1)

    Raises (at the first draw):
        ValueError: if the weight is not proportional to sigmoid(-gamma). Use
            `importance.Importance` for other pairs of schedule and parameterization.
    Refs: i-DODE, importance sampling of time.
    """

    uses_gamma_of_t: ClassVar[bool] = False
    samples_t: ClassVar[bool] = False

    quantiles: AbstractQuantiles = dataclasses.field(default_factory=LowDiscrepancy)

    def gamma_and_density(
        self, u: types.PerExample, time: AbstractTime, weight: base.Weight
    ) -> tuple[types.PerExample, types.PerExample]:
        """Return gamma at quantile u, and p there."""
        _check_weight(weight)
        log_mass = jnp.logaddexp(0.0, -jnp.asarray(time.gamma_min, u.dtype))
        at_end = jnp.logaddexp(0.0, -jnp.asarray(time.gamma_max, u.dtype))
        total = log_mass - at_end
        exponent = jnp.maximum(log_mass - total * u, at_end)  # rounding would give gamma = infinity
        # log(e^x - 1) = x + log(1 - e^-x), which neither overflows nor cancels.
        gamma = -(exponent + jnp.log(-jnp.expm1(-exponent)))
        return gamma, jax.nn.sigmoid(-gamma) / total


def _check_weight(weight: base.Weight) -> None:
    with jax.ensure_compile_time_eval():
        gamma = np.linspace(-13.0, 5.0, 9, dtype=numerics.float_dtype())
        # A proportion holds everywhere. Compiled, so that it is one program, not one an operation.
        ratio = np.asarray(jax.jit(lambda g: weight(g) / jax.nn.sigmoid(-g))(gamma))
    if np.ptp(ratio) > 1e-3 * abs(ratio[0]):
        raise ValueError(
            "`VPVelocityImportance` needs a weight proportional to sigmoid(-gamma), which only "
            "velocity prediction on the variance-preserving path has; here the ratio of the two "
            f"runs from {ratio.min():.3g} to {ratio.max():.3g}. Use "
            "`time_samplers.importance.Importance`, which works for every pair, as `time_sampler`."
        )
