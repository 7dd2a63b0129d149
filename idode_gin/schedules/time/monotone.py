"""gamma(t) as a monotone network."""

import dataclasses
import math
from typing import ClassVar, final

import jax
import jax.numpy as jnp

from idode_gin import checks, numerics, types
from idode_gin.schedules.time import base

_STEEPNESS = 8.0
_SHARE = 0.1
"""Initial slope of the units over [-1/2, 1/2], and their initial share beside the linear term."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Monotone(base.AbstractLearnedTime):
    """A network of three layers with positive weights, normalized to its ends:

        g(t) = l1(t) + mean over units of l3(sigmoid(l2(l1(t))))
        gamma(t) = gamma_min + (gamma_max - gamma_min) (g(t) - g(0)) / (g(1) - g(0))

    Weights are the softplus of their parameters, so that g increases strictly. A unit is a smooth
    step at a place of its own; initially they are spread evenly, and gamma(t) is linear to within
    one percent of its range.

    The ends minimize the bound. The interior minimizes the second moment of the loss, and with it
    the variance: see `losses.least_variance`. Its time sampler must be `uniform.Uniform`.

    Args:
        gamma_min: the initial clean end, nats.
        gamma_max: the initial noise end, nats.
        learn_ends: train the ends; if not, they stay as given.
        units: units of the second layer; published 1024.

    Raises:
        ValueError: unless gamma_min < gamma_max, and `units` is positive.
    Refs: VDM, monotone network of the noise schedule.
    """

    learns_interior: ClassVar[bool] = True

    gamma_min: float = -13.3
    gamma_max: float = 5.0
    learn_ends: bool = True
    units: int = 1024

    def __post_init__(self) -> None:
        base.check_ends(self.gamma_min, self.gamma_max)
        checks.check_integer("units", self.units, at_least=1)

    def init_interior(self, key: types.PRNGKey) -> types.Params:
        """Return the layers; the key is not used."""
        dtype = numerics.float_dtype()
        places = (jnp.arange(self.units, dtype=dtype) + 0.5) / self.units - 0.5
        ones = jnp.ones(self.units, dtype)
        return {
            "l1": {"kernel": _raw(1.0) * ones[0], "bias": -0.5 * ones[0]},
            "l2": {"kernel": _raw(_STEEPNESS) * ones, "bias": -_STEEPNESS * places},
            "l3": {"kernel": _raw(_SHARE) * ones},
        }

    def fraction(self, interior: types.Params, t: types.Gamma) -> types.Gamma:
        """Return (g(t) - g(0)) / (g(1) - g(0))."""
        start, end = (_g(interior, jnp.asarray(each, t.dtype)) for each in (0.0, 1.0))
        return (_g(interior, t) - start) / (end - start)


def _g(interior: types.Params, t: types.Gamma) -> types.Gamma:
    l1, l2, l3 = (interior[name] for name in ("l1", "l2", "l3"))
    h = jax.nn.softplus(l1["kernel"]) * t + l1["bias"]
    units = jax.nn.sigmoid(jax.nn.softplus(l2["kernel"]) * h[..., None] + l2["bias"])
    return h + jnp.mean(jax.nn.softplus(l3["kernel"]) * units, axis=-1)


def _raw(weight: float) -> float:
    """Return the parameter whose softplus is `weight`."""
    return math.log(math.expm1(weight))
