"""Parameters of equal blocks: one tree per block, or one tree with the blocks on a first axis.

unrolled    down_0, down_1, ..., up_0, up_1, ...      as published
stacked     down, up: every leaf [blocks, *shape]     for `UNet.scan`
"""

import re
from typing import Any

import jax
import jax.numpy as jnp

AXIS = "layers"
"""Name of the first axis of stacked parameters."""

PARTS = ("down", "up")


def stacked(params: dict[str, Any]) -> dict[str, Any]:
    """Convert unrolled parameters, or a tree like them such as their average, to stacked ones."""
    check(params, is_stacked=False)
    result = {name: each for name, each in params.items() if not _numbered(name)}
    for part in PARTS:
        names = sorted((each for each in params if _numbered(each) == part), key=_number)
        if names:
            blocks = [params[name] for name in names]
            result[part] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return result


def unrolled(params: dict[str, Any]) -> dict[str, Any]:
    """Convert stacked parameters, or a tree like them such as their average, to unrolled ones."""
    check(params, is_stacked=True)
    result = {name: each for name, each in params.items() if name not in PARTS}
    for part in set(PARTS) & set(params):
        (count,) = {leaf.shape[0] for leaf in jax.tree.leaves(params[part])}
        for number in range(count):
            block = jax.tree.map(lambda leaf, at=number: leaf[at], params[part])
            result[f"{part}_{number}"] = block
    return result


def check(params: Any, is_stacked: bool) -> None:
    """Raise ValueError if `params` is of the other form."""
    if ("up" in params) == is_stacked:
        return
    forms = ("unrolled", "stacked")
    raise ValueError(
        f"The blocks' parameters must be {forms[is_stacked]}, got {forms[not is_stacked]} ones. "
        f"`networks.stacking.{forms[is_stacked]}(params)` converts them; a network with "
        f"scan={not is_stacked} takes them as they are."
    )


def _numbered(name: str) -> str | None:
    match = re.fullmatch(r"(down|up)_\d+", name)
    return match[1] if match else None


def _number(name: str) -> int:
    return int(name.split("_")[1])
