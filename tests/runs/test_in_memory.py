"""Values of images in memory: compiled once for each name, whatever the key."""

import jax
import jax.numpy as jnp
import numpy as np

from idode_gin.devices.partitioning import PjitPartitioner
from idode_gin.runs import in_memory
from idode_gin.runs.in_memory import InMemory


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
        (found,) = set(memory.run("drawing", "", draw, batch, key)["drawn"].tolist())
        assert found == float(jax.random.uniform(jax.random.fold_in(key, 1)))
        seen.add(found)
    assert len(seen) == 3


def test_a_seed_may_be_an_integer_of_numpy():
    for seed in (5, np.int64(5), np.arange(6)[5], np.uint8(5)):
        assert in_memory.key_of(seed) == jax.random.key(5)
    assert in_memory.key_of(None) == jax.random.key(0) == in_memory.key_of(np.int32(0))
