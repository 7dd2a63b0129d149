"""Functions of images in memory: compiled once for each way, and never taken for another one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.runs import image_loop
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


def test_equal_ways_share_a_program_unless_a_number_has_another_type(compiled):
    memory = InMemory(params={}, partitioner=PjitPartitioner())
    assert value_of(memory, Number(2.0)) == value_of(memory, Number(2.0)) == [2.0] * 3
    assert len(compiled) == 1
