"""Trains the tiny model on several CPU devices: `python on_devices.py DEVICES MODEL_DIR STEPS`.

Prints as JSON what the tests of partitioning compare.
"""

import json
import sys

import jax
import numpy as np
import optax
import tiny

from idode_gin.runtime import data


def trainer(model_dir, steps: int):
    return tiny.trainer(model_dir, steps, optimizer=optax.sgd(0.1), num_microbatches=2)


def main(devices: str, model_dir: str, steps: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(devices))
    data.load_split = lambda config: tiny.split(config.mixture_or_task_name)
    here = trainer(model_dir, int(steps))
    batch = data.train_batch(tiny.split(), tiny.config(8), 0)
    placed = here.partitioner.put_batch(batch)
    shards = placed["position"].addressable_shards
    fetched = here.partitioner.fetch(placed)
    same = all(np.array_equal(fetched[name], batch[name]) for name in batch)
    summary = here.run(tiny.model(), tiny.config(8), tiny.config(8))
    print(
        json.dumps(
            {
                "devices": jax.device_count(),
                "rows": [np.asarray(shard.data).tolist() for shard in shards],
                "fetched": same,
                "summary": summary,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
