"""Print, as JSON, the memory that reading a split takes, for every way to read one.

A program of its own: memory left by other tests in the process would distort the measurement.
"""

import gc
import json
import pathlib
import re
import sys

import numpy as np
import seqio
import tensorflow as tf

from idode_gin.feed import augmentation, batches, data, loading
from idode_gin.feed.sources import ImageSource

COUNT, SHAPE, BATCH = 48_000, (32, 32, 3), 256  # 147 MB: TensorFlow has 12 MB of its own
KINDS = augmentation.Augmentation(channels=True)
WHOLE, NO_CACHE = {"memory_map": False}, {"cache_dir": ""}


def make(index):
    """Return an image that TensorFlow makes on demand."""
    return {"image": tf.fill(SHAPE, tf.cast(index % 251, tf.uint8))}


class Made(seqio.FunctionDataSource, ImageSource):
    def __init__(self, name, start, stop, is_counted=True):
        def dataset_fn(split, shuffle_files, seed=None):
            return tf.data.Dataset.range(start, stop).map(make)

        count = {"train": stop - start} if is_counted else None
        super().__init__(dataset_fn, splits=("train",), num_input_examples=count)
        self.name = name

    def cache_key(self, split):
        return self.name


def add(name, start=0, stop=COUNT, preprocessors=(), **options):
    seqio.TaskRegistry.add(
        name,
        source=Made(name, start, stop, **options),
        preprocessors=list(preprocessors),
        output_features={"image": seqio.ContinuousFeature(dtype=tf.uint8, rank=3)},
    )


def field(name):
    """Return a field of this process's status, in bytes."""
    (kilobytes,) = re.findall(rf"{name}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)


def took(folder, name, path=None, **settings):
    """Memory as multiples of the split: the peak, and the private growth over an epoch."""
    config = data.DatasetConfig(
        mixture_or_task_name=name,
        split="train",
        batch_size=BATCH,
        data_path=path,
        augmentation=KINDS,
        **({"cache_dir": folder} | settings),
    )
    gc.collect()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM is now VmRSS
    before, private = field("VmHWM"), field("RssAnon")
    split = loading.load_split(config)
    assert len(split.images) == COUNT
    found = {"peak": (field("VmHWM") - before) / split.images.nbytes}
    grown = 0.0
    for step in range(COUNT // BATCH):
        batches.train_batch(split, config, step)
        grown = max(grown, field("RssAnon") - private)
    return found | {"private": grown / split.images.nbytes}


def main(folder):
    add("whole")
    add("uncounted", is_counted=False)
    add("through", preprocessors=[lambda dataset: dataset.map(lambda each: each)])
    add("first", 0, COUNT * 3 // 4)
    add("second", COUNT * 3 // 4)
    add("through_first", 0, COUNT * 3 // 4, [lambda dataset: dataset.map(lambda each: each)])
    seqio.MixtureRegistry.add("mixture", [("first", 3.0), ("second", 1.0)])
    seqio.MixtureRegistry.add("mixture_through", [("through_first", 3.0), ("second", 1.0)])
    path = f"{folder}/own.npz"
    np.savez(path, train=np.ones((COUNT, *SHAPE), np.uint8))
    took(folder, "through", **NO_CACHE)  # TensorFlow's buffers and threads stay
    found = {
        "no cache": took(folder, "whole", **NO_CACHE),
        "no cache, uncounted": took(folder, "uncounted", **NO_CACHE),
        "through the task": took(folder, "through"),
        "mixture, no cache": took(folder, "mixture", **NO_CACHE),
        "mixture, through a task": took(folder, "mixture_through", **NO_CACHE),
        "npz, no cache": took(folder, "image_npz", path, **NO_CACHE),
        "decoded into the cache, read whole": took(folder, "whole", **WHOLE),
        "mixture, joined in the cache, read whole": took(folder, "mixture", **WHOLE),
        "npz, decoded into the cache, read whole": took(folder, "image_npz", path, **WHOLE),
        "mapped": took(folder, "whole"),
        "mixture, mapped": took(folder, "mixture"),
        "npz, mapped": took(folder, "image_npz", path),
        "decoded and mapped": took(f"{folder}/other", "whole"),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
