"""Values of images in memory: compiled once for each name and way, whatever the key."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.evaluation import scores
from idode_gin.runs import image_loop, in_memory
from idode_gin.runs.in_memory import InMemory

BATCH = {"index": np.arange(3)}


@dataclasses.dataclass(frozen=True)
class Table:
    """A way whose array is too long to be shown whole."""

    values: np.ndarray = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Number:
    value: float


@pytest.fixture
def compiled(monkeypatch):
    """List what is compiled."""
    found, plain = [], image_loop.compiled

    def watched(*arguments):
        found.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr(image_loop, "compiled", watched)
    return found


def value_of(memory, way):
    def compute(given, batch, key):
        value = way.values.sum() if isinstance(way, Table) else way.value
        return {"value": jnp.full(batch["index"].shape, value)}

    return memory.run("computing", (way,), compute, BATCH, jax.random.key(0))["value"].tolist()


def test_ways_that_look_alike_are_not_taken_for_each_other(compiled):
    memory = InMemory(params={}, partitioner=PjitPartitioner())
    first, second = Table(np.ones(3)), Table(np.zeros(3))
    assert [value_of(memory, each) for each in (first, second, first)] == [
        [3] * 3,
        [0] * 3,
        [3] * 3,
    ]
    assert len(compiled) == 2


def test_equal_ways_share_a_program(compiled):
    memory = InMemory(params={}, partitioner=PjitPartitioner())
    assert value_of(memory, Number(2.0)) == value_of(memory, Number(2.0)) == [2.0] * 3
    assert len(compiled) == 1


def test_keys_of_every_implementation_are_taken_as_they_are():
    """Two of them have keys of one size, and derive other keys from them."""
    memory = InMemory(params={}, partitioner=PjitPartitioner())
    batch = {"index": np.arange(3)}

    def draw(given, batch, key):
        drawn = jax.random.uniform(jax.random.fold_in(key, 1))
        return {"drawn": jnp.broadcast_to(drawn, batch["index"].shape)}

    seen = set()
    for implementation in ("threefry2x32", "rbg", "unsafe_rbg"):
        key = jax.random.key(5, impl=implementation)
        (found,) = set(memory.run("drawing", (), draw, batch, key)["drawn"].tolist())
        assert found == float(jax.random.uniform(jax.random.fold_in(key, 1)))
        seen.add(found)
    assert len(seen) == 3


@pytest.mark.parametrize("seed", [2**32, -1, 0.5, "a", [0, 1], True])
def test_a_seed_that_is_another_one_or_none_is_refused(seed):
    """jax takes 2**32 for 0."""
    with pytest.raises(ValueError, match="`key` must be an integer from 0 to 2\\^32 - 1, got"):
        inspect.unwrap(in_memory.key_of)(seed)
    assert in_memory.key_of(2**32 - 1) == jax.random.key(2**32 - 1)


def test_a_seed_may_be_an_integer_of_numpy():
    for seed in (5, np.int64(5), np.arange(6)[5], np.uint8(5)):
        assert in_memory.key_of(seed) == jax.random.key(5)
    assert in_memory.key_of(None) == jax.random.key(0) == in_memory.key_of(np.int32(0))
    assert scores.key_of(np.int64(5), "a") == scores.key_of(5, "a")


def test_an_array_that_is_not_one_key_is_refused():
    raw = jax.random.PRNGKey(5)
    assert in_memory.key_of(raw) == in_memory.key_of(jax.random.wrap_key_data(raw))
    for array in (jnp.asarray(3), np.arange(3), jax.random.split(jax.random.key(0), 2)):
        with pytest.raises(TypeError, match="`key` must be one random key"):
            inspect.unwrap(in_memory.key_of)(array)
