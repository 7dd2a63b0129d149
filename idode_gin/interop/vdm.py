"""gamma(t) of google-research/vdm: parameters of its learned schedules as ours.

    gamma/w, b                        learned linear: gamma(t) = |w| t + b
    gamma/l1, l2, l3                  monotone network of n units, with weights |kernel|:

        gamma(t) = l1(t) + 1/n sum of |l3| (2 sigmoid(l2(2 t - 1)) - 1)

It has no normalization, so its ends are gamma(0) and gamma(1). Between them it is the function of
`schedules.time.monotone.Monotone` with

    softplus(l1) = 1      softplus(l2) = 2 |l2|      softplus(l3) = 2 |l3| / |l1|      h = t - 1/2
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin import types
from idode_gin.schedules.time.base import ENDS, INTERIOR, PARAMS

ROOT = "gamma"
"""Entry of the published parameters that holds those of gamma(t)."""

_LINEAR = {("w",): (1,), ("b",): (1,)}


def split(leaves: Mapping[tuple[str, ...], Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Return the leaves of the network, and those of gamma(t) without their root."""
    network = {path: leaf for path, leaf in leaves.items() if path[0] != ROOT}
    return network, {path[1:]: leaf for path, leaf in leaves.items() if path[0] == ROOT}


def time_params(leaves: Mapping[tuple[str, ...], Any]) -> types.Params:
    """Return our entry for the parameters of gamma(t); {} if there are none, for a fixed one.

    Args:
        leaves: by path, such as ("l1", "kernel"), of `gamma_type` 'learnable_scalar' or
            'learnable_nnet'.

    Raises:
        ValueError: for other leaves, other shapes, or a gamma(t) that does not increase.
    """
    if not leaves:
        return {}
    _check(leaves)
    leaves = {path: jnp.asarray(leaf) for path, leaf in leaves.items()}
    if set(leaves) == set(_LINEAR):
        slope, start = jnp.abs(leaves[("w",)][0]), leaves[("b",)][0]
        parts: types.Params = {ENDS: {"gamma_min": start, "gamma_max": start + slope}}
    else:
        parts = _monotone(leaves)
    _check_increases(parts)
    return {PARAMS: parts}


def zero_moments(leaves: Mapping[tuple[str, ...], Any]) -> types.Params:
    """Return zeros like `time_params`: Adam's moments, which a change of parameters loses."""
    shapes = jax.eval_shape(time_params, leaves)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _monotone(leaves: Mapping[tuple[str, ...], Any]) -> types.Params:
    slope, start = jnp.abs(leaves[("l1", "kernel")][0, 0]), leaves[("l1", "bias")][0]
    steepness, bias = jnp.abs(leaves[("l2", "kernel")][0]), leaves[("l2", "bias")]
    share = jnp.abs(leaves[("l3", "kernel")][:, 0])

    def units(t: float) -> Any:
        return jnp.mean(share * (2 * jax.nn.sigmoid(steepness * (2 * t - 1) + bias) - 1))

    ends = {"gamma_min": start + units(0.0), "gamma_max": start + slope + units(1.0)}
    one = jnp.ones_like(slope)
    interior = {
        "l1": {"kernel": _raw(one), "bias": -one / 2},
        "l2": {"kernel": _raw(2 * steepness), "bias": bias},
        "l3": {"kernel": _raw(2 * share / slope)},
    }
    return {ENDS: ends, INTERIOR: interior}


def _raw(weight: Any) -> Any:
    """Return the parameter whose softplus is `weight`, of which zero becomes the least number."""
    weight = jnp.maximum(weight, jnp.finfo(weight.dtype).tiny)
    return weight + jnp.log(-jnp.expm1(-weight))


def _check(leaves: Mapping[tuple[str, ...], Any]) -> None:
    bias = np.shape(leaves.get(("l2", "bias"), ()))
    units = bias[0] if len(bias) == 1 else 1
    network = {
        ("l1", "kernel"): (1, 1),
        ("l1", "bias"): (1,),
        ("l2", "kernel"): (1, units),
        ("l2", "bias"): (units,),
        ("l3", "kernel"): (units, 1),
    }
    found = {path: np.shape(leaf) for path, leaf in leaves.items()}
    if found not in (_LINEAR, network):
        listed = ", ".join(f"{'/'.join(path)} {list(found[path])}" for path in sorted(found))
        raise ValueError(
            f"`{ROOT}` of a published VDM must hold w [1] and b [1], or l1/kernel [1, 1], l1/bias "
            f"[1], l2/kernel [1, n], l2/bias [n] and l3/kernel [n, 1], got {listed}. Convert a "
            "checkpoint of `gamma_type` 'learnable_scalar', 'learnable_nnet' or 'fixed'."
        )


def _check_increases(parts: Mapping[str, Any]) -> None:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(parts)):
        return
    low, high = (float(parts[ENDS][name]) for name in ("gamma_min", "gamma_max"))
    is_finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(parts))
    if not (low < high and is_finite):
        raise ValueError(
            f"`{ROOT}` of a published VDM must increase from t = 0 to t = 1 and have a linear "
            f"part, got gamma(0) = {low:.6g} and gamma(1) = {high:.6g}. The file is damaged: take "
            "another checkpoint."
        )
