"""Train the tiny model on several CPU devices, or as one of several processes.

    python on_devices.py devices NUMBER MODEL_DIR STEPS [MESH as JSON]
    python on_devices.py process INDEX MODEL_DIR STEPS NUMBER PORT

Prints as JSON what the tests of partitioning compare. Exits with 75 when asked to stop.
"""

import json
import sys

import jax
import numpy as np
import optax
import tiny

from idode_gin import checks
from idode_gin.devices import partitioning
from idode_gin.feed import batches, loading


def trainer(model_dir, steps: int, mesh=None):
    return tiny.trainer(
        model_dir,
        steps,
        optimizer=optax.sgd(0.1, momentum=0.9),
        num_microbatches=2,
        partitioner=partitioning.PjitPartitioner(mesh_shape=mesh),
    )


def on_devices(number: str) -> None:
    jax.config.update("jax_num_cpu_devices", int(number))


def as_process(index: str, number: str, port: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(number), int(index))


def main(kind: str, which: str, model_dir: str, steps: str, *others: str) -> int:
    jax.config.update("jax_platforms", "cpu")
    mesh = None
    if kind == "process":
        as_process(which, *others)
    else:
        on_devices(which)
        mesh = json.loads(others[0]) if others else None
    loading.load_split = lambda config: tiny.split(config.mixture_or_task_name)
    here = trainer(model_dir, int(steps), mesh)
    batch = batches.train_batch(tiny.split(), tiny.config(8), 0)
    placed = here.partitioner.put_batch(batch, 8)
    shards = placed["position"].addressable_shards
    try:
        summary = here.run(tiny.model(), tiny.config(8), tiny.config(8))
    except checks.Preempted as stopped:
        print(stopped)
        return checks.EXIT_PREEMPTED
    found = {
        "devices": jax.device_count(),
        "rows": [np.asarray(shard.data).tolist() for shard in shards],
        "summary": summary,
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
