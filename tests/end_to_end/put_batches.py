"""One process's part of a feed: what lands on its devices, as a line of JSON per step and row."""

import hashlib
import json
import os
import sys

import numpy as np

from idode_gin.configs import execution, flags
from idode_gin.devices import partitioning
from idode_gin.feed import augmentation, batches, data

BATCH_SIZE, STEPS = 8, 5
FIELDS = ("image", "conditioning", "position", "index", "mask")


def dataset() -> tuple[data.ImageSplit, data.DatasetConfig]:
    words = np.random.default_rng(0)
    split = data.ImageSplit(
        images=words.integers(0, 256, (13, 4, 4, 3), dtype=np.uint8),
        conditioning=words.normal(size=(13, 1)).astype(np.float32),
        name="random",
        split="train",
        augmentation=augmentation.Augmentation(),
    )
    config = data.DatasetConfig(
        mixture_or_task_name="random", split="train", batch_size=BATCH_SIZE, seed=3
    )
    return split, config


def digest(rows: dict[str, np.ndarray], place: int) -> str:
    content = b"".join(np.ascontiguousarray(rows[name][place]).tobytes() for name in FIELDS)
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    execution.initialize_processes(flags.parse(sys.argv[1:]))
    split, config = dataset()
    partitioner = partitioning.PjitPartitioner()
    rows = partitioner.local_rows(BATCH_SIZE)
    first, ahead = int(os.environ.get("FIRST_STEP", "0")), int(os.environ.get("AHEAD", "2"))

    def put(step: int):
        return partitioner.put_batch(batches.train_batch(split, config, step, rows), BATCH_SIZE)

    steps = range(first, STEPS)
    feed = batches.prefetch((put(each) for each in steps), size=ahead)
    for step, batch in zip(steps, feed, strict=True):
        shards = {name: batch[name].addressable_shards for name in FIELDS}
        for number, shard in enumerate(shards["image"]):
            held = {name: np.asarray(shards[name][number].data) for name in FIELDS}
            start = shard.index[0].start or 0
            for place in range(len(held["image"])):
                found = [step, start + place, digest(held, place)]
                print(json.dumps(found), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
