"""Trains the tiny model on several CPU devices, or as one of several processes with one device.

    python on_devices.py devices NUMBER MODEL_DIR STEPS
    python on_devices.py process INDEX MODEL_DIR STEPS NUMBER PORT

Prints as JSON what the tests of partitioning compare; exits with 75 when asked to stop.
"""

import json
import sys

import jax
import numpy as np
import optax
import tiny

from idode_gin import checks
from idode_gin.runtime import batches, loading


def trainer(model_dir, steps: int):
    return tiny.trainer(model_dir, steps, optimizer=optax.sgd(0.1), num_microbatches=2)


def on_devices(number: str) -> None:
    jax.config.update("jax_num_cpu_devices", int(number))


def as_process(index: str, number: str, port: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(number), int(index))


def main(kind: str, which: str, model_dir: str, steps: str, *processes: str) -> int:
    jax.config.update("jax_platforms", "cpu")
    if kind == "process":
        as_process(which, *processes)
    else:
        on_devices(which)
    loading.load_split = lambda config: tiny.split(config.mixture_or_task_name)
    here = trainer(model_dir, int(steps))
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
