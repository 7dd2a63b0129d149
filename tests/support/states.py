"""States, and how tests save and restore them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from idode_gin.checkpoints import saving
from idode_gin.devices import partitioning
from idode_gin.reports import fingerprints
from idode_gin.training import optimizers, train_state

FACTS = {"seed": 0, "batch_size": 4}


def state_of(step, *, width=8, value=None, **optimizer):
    """A state with every leaf different, as after `step` updates."""
    params = tiny.model(width).init(jax.random.key(step), tiny.SHAPE)
    if value is not None:
        params = jax.tree.map(lambda leaf: leaf * value, params)
    transformation = optimizers.AdamW(**optimizer).build()
    state = train_state.create(params, transformation, ["loss"])
    return dataclasses.replace(
        state, step=jnp.int32(step), ema=jax.tree.map(lambda leaf: leaf + 1, params)
    )


def abstract_of(state):
    sharding = partitioning.PjitPartitioner().state_sharding(state)
    return partitioning.abstract(state, sharding)


def config(*, keep=None, **restore):
    return saving.CheckpointConfig(
        save=saving.SaveCheckpointConfig(period=2, keep=keep),
        restore=saving.RestoreCheckpointConfig(**restore),
    )


def save(directory, *steps, keep=None, **changes):
    with saving.Checkpoints(directory, config(keep=keep), FACTS) as saved:
        for step in steps:
            saved.save(state_of(step, **changes))


def restore(directory, like=None, **restore_config):
    """What a run in `directory` would start from."""
    fresh = like or state_of(0)
    with saving.Checkpoints(directory, config(**restore_config), FACTS) as saved:
        return saved.restore(abstract_of(fresh), lambda: fresh)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert fingerprints.sha256(actual) == fingerprints.sha256(expected)
