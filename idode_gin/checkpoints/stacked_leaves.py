"""Convert between one leaf per block and one stacked leaf for all equal blocks.

    params/down_0/conv/kernel [3, 3, 8, 8], params/down_1/conv/kernel [3, 3, 8, 8], ...
    params/down/conv/kernel   [blocks, 3, 3, 8, 8]

Recognized by names and shapes alone, for any network: consecutive numbers, and blocks that have the
shape of the stacked leaf without its first axis.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, final

import jax
import jax.numpy as jnp

Shape: TypeAlias = tuple[int, ...]
_NUMBERED = re.compile(r"(?P<name>[^/]*[^/\d])_(?P<number>0|[1-9]\d*)")


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """A leaf that a checkpoint does not hold but that can be computed from its leaves.

    Attributes:
        sources: names of the leaves it is computed from.
        shape: its shape.
        of: computes it from the checkpoint's leaves by name.
    """

    sources: tuple[str, ...]
    shape: Shape
    of: Callable[[Mapping[str, jax.Array]], jax.Array]


def made(saved: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> dict[str, Made]:
    """Return the leaves of a run that a checkpoint holds in the other form only.

    Args:
        saved: shapes of the checkpoint's leaves, by name.
        wanted: shapes of the run's leaves, by name.
    """
    found: dict[str, Made] = {}
    for whole, names in _blocks(saved).items():
        if whole in wanted and whole not in saved and _fit(wanted[whole], names, saved):
            found[whole] = _stacked(names, wanted[whole])
    for whole, names in _blocks(wanted).items():
        if whole in saved and not saved.keys() & set(names) and _fit(saved[whole], names, wanted):
            shape = saved[whole][1:]
            found |= {name: _block(whole, number, shape) for number, name in enumerate(names)}
    return found


def as_if_saved(saved: Mapping[str, Shape], found: Mapping[str, Made]) -> dict[str, Shape]:
    """Return the shapes of a checkpoint's leaves with those `found` in place of their sources."""
    used = {source for each in found.values() for source in each.sources}
    kept = {name: shape for name, shape in saved.items() if name not in used}
    return kept | {name: each.shape for name, each in found.items()}


def _stacked(names: Sequence[str], shape: Shape) -> Made:
    return Made(
        sources=tuple(names),
        shape=shape,
        of=lambda leaves: jnp.stack([leaves[name] for name in names]),
    )


def _block(whole: str, number: int, shape: Shape) -> Made:
    return Made(sources=(whole,), shape=shape, of=lambda leaves: leaves[whole][number])


def _blocks(shapes: Mapping[str, Shape]) -> dict[str, list[str]]:
    """Return names of leaves of numbered blocks, in order, by the name without the number."""
    numbered: dict[str, dict[int, str]] = collections.defaultdict(dict)
    for name in shapes:
        parts = name.split("/")
        for place, part in enumerate(parts):
            if match := _NUMBERED.fullmatch(part):
                whole = "/".join([*parts[:place], match["name"], *parts[place + 1 :]])
                numbered[whole][int(match["number"])] = name
    return {
        whole: [names[number] for number in range(len(names))]
        for whole, names in numbered.items()
        if max(names) == len(names) - 1
    }


def _fit(whole: Shape, names: Sequence[str], shapes: Mapping[str, Shape]) -> bool:
    return whole[:1] == (len(names),) and all(shapes[name] == whole[1:] for name in names)
