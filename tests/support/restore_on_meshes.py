"""Saves a state that is split over four devices and restores it on other meshes and dtypes.

    python restore_on_meshes.py DIRECTORY

Prints as JSON, for every mesh, the bytes of the kernel that each device holds and whether all
numbers are those that were saved.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from idode_gin import types
from idode_gin.checkpoints import saving

MESHES = {"1": (1, 1), "4": (4, 1), "2x2": (2, 2), "1x4": (1, 4)}


def placed(state, shape):
    """The state with its kernels split along both axes of a mesh."""
    devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
    mesh = Mesh(devices, ("data", "fsdp"))

    def sharding(leaf):
        return NamedSharding(mesh, PartitionSpec("data", "fsdp") if leaf.ndim else PartitionSpec())

    return jax.tree.map(sharding, state)


def state_of(dtype=jnp.float32):
    params = {"kernel": jnp.arange(64.0).reshape(8, 8).astype(dtype)}
    ema = {"kernel": params["kernel"] / 2}
    moments = {"mu": params["kernel"] / 4}
    step = jnp.int32(5)
    return types.TrainState(
        step=step, params=params, ema=ema, opt_state=moments, window={}, guard={}
    )


def restored_on(directory, shape, dtype):
    fresh = state_of(dtype)
    wanted = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        fresh,
        placed(fresh, shape),
    )
    state, _ = saving.Checkpoints(directory, saving.CheckpointConfig(), {}).restore(
        wanted, lambda: fresh
    )
    same = jax.tree.map(
        lambda leaf, want, asked: (
            leaf.sharding == asked.sharding
            and leaf.dtype == want.dtype
            and np.array_equal(leaf, want)
        ),
        state,
        fresh,
        wanted,
    )
    shards = state.params["kernel"].addressable_shards
    return {"bytes": [each.data.nbytes for each in shards], "same": all(jax.tree.leaves(same))}


def main(directory):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    state = jax.device_put(state_of(), placed(state_of(), (2, 2)))
    with saving.Checkpoints(directory, saving.CheckpointConfig(), {}) as saved:
        saved.save(state)
    found = {
        f"{name} {jnp.dtype(dtype).name}": restored_on(directory, shape, dtype)
        for name, shape in MESHES.items()
        for dtype in (jnp.float32, jnp.bfloat16)
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
