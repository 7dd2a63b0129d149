"""Values of images in memory, for Python: computed on all devices, as the image loop does."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin import checks, types
from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.feed import batches as batch_lib
from idode_gin.likelihood import any_field
from idode_gin.reports import progress
from idode_gin.runs import image_loop, means

SOLVE_SIZE = 32
"""Images per solve, as in the programs."""

Seed: TypeAlias = types.PRNGKey | int | np.integer | None
"""A random key, or the seed of one (RANDOM_SEED of a program); None is seed 0."""
Keyed = Callable[[types.Params, types.Batch, types.PRNGKey], Mapping[str, jax.Array]]
"""`(given, batch, key) -> values [B, ...]` by name. `given` holds the parameters as `network`."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class InMemory:
    """Functions of images, compiled once for each.

    Args:
        params: of the network, replicated over the devices.
        partitioner: devices.
    """

    params: types.Params
    partitioner: PjitPartitioner
    _compiled: dict[tuple[Any, ...], image_loop.Compute] = dataclasses.field(
        default_factory=dict, init=False
    )

    def run(
        self,
        what: str,
        method: tuple[Any, ...],
        compute: Keyed,
        batch: types.Batch,
        key: Seed,
        **more: Any,
    ) -> dict[str, np.ndarray]:
        """Return the values `[N, ...]` of all images.

        Args:
            what: what is done, for lines that show progress.
            method: how; calls with the same `what` and equal `method` must have the same function.
                A part of it that cannot be hashed, such as an array of jax, equals itself alone.
            compute: the function.
            batch: of all N images.
            key: passed on as a key.
            more: further arrays of `given`.
        """
        key = key_of(key)
        implementation = str(jax.random.key_impl(key))

        def with_key(given: types.Params, batch: types.Batch) -> Mapping[str, jax.Array]:
            key = jax.random.wrap_key_data(given["key"], impl=implementation)
            return compute(given, batch, key)

        size = SOLVE_SIZE * self.partitioner.mesh.size
        known = (what, implementation, _hashable(method, {}))
        if known not in self._compiled:
            self._compiled[known] = image_loop.compiled(with_key, self.partitioner, SOLVE_SIZE)
        compiled = self._compiled[known]
        given = {"network": self.params, "key": np.asarray(jax.random.key_data(key)), **more}
        rows, count = self.partitioner.local_rows(size), len(next(iter(batch.values())))
        parts = (
            self.partitioner.put_batch({k: each[index] for k, each in batch.items()}, size)
            for index, _ in batch_lib.index_batches(np.arange(count), size, rows)
        )
        landed = means.landed(lambda part: compiled(given, part), parts, lambda: False)
        found = []
        with progress.phase(what, count, bar=False) as going_on:
            for part in landed:
                found.append(part)
                going_on.advance(min(size, count - going_on.done))
        return {k: np.concatenate([each[k] for each in found])[:count] for k in found[0]}


class _Identity:
    """A key of an object that equals itself alone; it keeps the object, and so the id."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self._value is other._value


def _hashable(value: Any, seen: dict[int, int]) -> Any:
    """Return a key for a value that changes with what it holds, if that is changed in place.

    Args:
        value: any object.
        seen: numbers of the objects that have been entered, by id; added to.
    """
    kind, same = type(value), None
    parts: Mapping[Any, Any]
    if id(value) in seen:
        return kind, seen[id(value)]
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    elif isinstance(value, list | tuple):
        parts = dict(enumerate(value))
    elif isinstance(value, dict):
        parts = value
    elif kind.__hash__ not in (None, object.__hash__):
        return value
    else:
        same = _Identity(value)
        is_code = isinstance(value, type) or inspect.ismodule(value)
        parts = {} if is_code else getattr(value, "__dict__", {})
    seen[id(value)] = len(seen)
    return kind, same, tuple((name, _hashable(part, seen)) for name, part in parts.items())


def key_of(seed: Seed) -> types.PRNGKey:
    """Return a typed random key.

    Raises:
        ValueError: for an integer that is not in 0 … 2^32 - 1, or text and the like.
        TypeError: for an array that is not one key.
    """
    if seed is None or not isinstance(seed, jax.Array | np.ndarray):
        checks.check_seed("key", 0 if seed is None else seed)
        return jax.random.key(int(seed or 0))
    any_field.check_key(seed)
    if not jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(seed)
    return seed
