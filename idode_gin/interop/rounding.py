"""Smaller copies of checkpoints: parameters and moving average in another dtype, nothing else.

They score, sample and start other runs, which read them as float32. A run cannot resume from one:
it holds no state of an optimizer. Parameters of gamma(t), which are few, are not rounded.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

from idode_gin import types
from idode_gin.interop import our_checkpoints
from idode_gin.reports import fingerprints
from idode_gin.schedules.time.base import PARAMS
from idode_gin.training import train_state

DTYPES = ("bfloat16", "float16")


def load(source: str | pathlib.Path) -> tuple[types.TrainState, dict[str, Any]]:
    """Return the parameters and moving average of a checkpoint of ours, and the facts of its run.

    Raises:
        ValueError: if there is none, or it is damaged.
    """
    meta, parts = our_checkpoints.read(source, ("params", "ema"))
    return state_of(int(meta["step"]), parts["params"], parts["ema"]), dict(meta["facts"])


def state_of(step: int, params: types.Params, ema: types.Params) -> types.TrainState:
    """Return a state without those of an optimizer and of metrics."""
    fresh = train_state.create(params, optax.identity(), [])
    return dataclasses.replace(fresh, step=jnp.asarray(step, fresh.step.dtype), ema=ema)


def rounded(tree: Any, dtype: str) -> Any:
    """Return the tree with its floats in `dtype`, except the parameters of gamma(t).

    Raises:
        ValueError: if a number has no finite value in `dtype`; with the name of its leaf.
    """

    def of_leaf(path: tuple[Any, ...], leaf: Any) -> Any:
        name = fingerprints.path_name(path)
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        if not is_float or name.startswith(f"{PARAMS}/"):
            return leaf
        found = jnp.asarray(leaf).astype(dtype)
        if not jnp.isfinite(found).all():
            raise ValueError(
                f"`{name}` must have finite values in {dtype}, and some have none. Use bfloat16, "
                "or leave --dtype out."
            )
        return found

    return jax.tree_util.tree_map_with_path(of_leaf, tree)
