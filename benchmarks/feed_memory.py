"""Memory of a split, from `load_split` to the last batch of an epoch, for every way to read one.

    python -m benchmarks.feed_memory [--images 50000 200000]

Synthetic 32 x 32 x 3 images, which TensorFlow makes one by one, so that only the feed holds them.
Each line is a process of its own. Its memory before `load_split`, with TensorFlow and seqio
imported and a small split read, is subtracted.

    peak / decoded      most resident memory, as a multiple of the images as they are trained on
    private, MB         the part of it outside mapped files: the most during `load_split`, after
                        the first batch, and the most over an epoch of shuffled, augmented batches

Mapped pages count as resident, so only the private columns show that a mapped split takes no memory
but the permutation and the random words of an epoch, 8 bytes each per image.
"""

import argparse
import json
import pathlib
import tempfile
from typing import Any

import numpy as np

from benchmarks import processes
from idode_gin.feed import augmentation, batches, data, loading
from idode_gin.feed.sources import ImageSource

SHAPE = (32, 32, 3)
BATCH = 128
IN_MEMORY = {"memory_map": False}
NO_CACHE = {"cache_dir": ""}

# Way: the task, and settings of the feed.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "cache, mapped, first run": ("plain", {}),
    "cache, mapped": ("plain", {}),
    "cache, read whole": ("plain", IN_MEMORY),
    "mixture, cache, mapped, first run": ("mixture", {}),
    "mixture, cache, mapped": ("mixture", {}),
    "mixture, cache, read whole": ("mixture", IN_MEMORY),
    "no cache": ("plain", NO_CACHE),
    "mixture, no cache": ("mixture", NO_CACHE),
    "through the task": ("through", NO_CACHE),
    "through the task, int64": ("through_wide", NO_CACHE),
    ".npz, no cache": ("image_npz", NO_CACHE),
    ".npz, cache, mapped, first run": ("image_npz", {}),
    ".npz, cache, mapped": ("image_npz", {}),
}


def register(count: int) -> None:
    """Register `plain`, its halves `first` and `second`, their `mixture`, and `through`."""
    import seqio
    import tensorflow as tf

    class Made(seqio.FunctionDataSource, ImageSource):
        def __init__(self, name: str, start: int, stop: int) -> None:
            self.name = name
            super().__init__(
                lambda split, shuffle_files, seed=None: tf.data.Dataset.range(start, stop).map(
                    make, num_parallel_calls=2
                ),
                splits=("train",),
                num_input_examples={"train": stop - start},
            )

        def cache_key(self, split: str) -> str:
            return str(self.num_input_examples(split))

    def make(index: Any) -> dict[str, Any]:
        image = tf.random.stateless_uniform(SHAPE, [index, 0], 0, 256, tf.int32)
        return {"image": tf.cast(image, tf.uint8)}

    def add(name: str, start: int, stop: int, *preprocessors: Any) -> None:
        feature = seqio.ContinuousFeature(dtype=tf.uint8, rank=3)
        seqio.TaskRegistry.add(
            name,
            source=Made(name, start, stop),
            preprocessors=list(preprocessors),
            output_features={"image": feature},
        )

    def widen(dataset: Any) -> Any:
        return dataset.map(lambda each: {"image": tf.cast(each["image"], tf.int64)})

    add("small", 0, 1000)
    add("plain", 0, count)
    add("first", 0, count // 2)
    add("second", count // 2, count)
    seqio.MixtureRegistry.add("mixture", [("first", 1.0), ("second", 1.0)])
    add("through", 0, count, lambda dataset: dataset.map(lambda each: each))
    seqio.TaskRegistry.add(
        "through_wide",
        source=Made("through_wide", 0, count),
        preprocessors=[widen],
        output_features={"image": seqio.ContinuousFeature(dtype=tf.int64, rank=3)},
    )


def run_one(way: str, folder: str, count: int) -> processes.Found:
    name, settings = WAYS[way]
    register(count)
    config = data.DatasetConfig(
        mixture_or_task_name=name,
        split="train",
        batch_size=BATCH,
        augmentation=augmentation.Augmentation(channels=True),
        data_path=f"{folder}/images.npz" if name == "image_npz" else None,
        **({"cache_dir": folder} | settings),
    )
    loading.load_split(
        data.DatasetConfig(
            mixture_or_task_name="small", split="train", batch_size=BATCH, cache_dir=""
        )
    )
    before = processes.memory()
    with processes.most_private() as loading_took:
        split = loading.load_split(config)
    batches.train_batch(split, config, 0)
    first = epoch = processes.memory()["private"]
    for step in range(1, split.num_images // BATCH + 1):
        batches.train_batch(split, config, step)
        if step % 16 == 0:
            epoch = max(epoch, processes.memory()["private"])
    return {
        "peak": (processes.memory()["peak"] - before["peak"]) / split.images.nbytes,
        "loading": max(loading_took) - before["private"],
        "first": first - before["private"],
        "epoch": epoch - before["private"],
        "decoded": split.images.nbytes,
    }


def compare(folder: str, count: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, *SHAPE), np.uint8)
    np.savez(pathlib.Path(folder, "images.npz"), train=images)
    decoded = images.nbytes / 1e6
    del images
    print(f"\n{count:,} images, {decoded:.0f} MB:\n")
    print("| way | peak / decoded | private, MB: loading | first batch | epoch |")
    print("|---|--:|--:|--:|--:|")
    for way in WAYS:
        row = processes.measure("benchmarks.feed_memory", ["--one", way, folder, str(count)])
        assert row is not None
        private = " | ".join(f"{row[key] / 1e6:.0f}" for key in ("loading", "first", "epoch"))
        print(f"| {way} | {row['peak']:.2f} | {private} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        way, folder, count = args.one
        print(json.dumps(run_one(way, folder, int(count))))
        return
    print(processes.conditions(["numpy", "tensorflow", "seqio"]))
    for count in args.images:
        with tempfile.TemporaryDirectory() as folder:
            compare(folder, count)


if __name__ == "__main__":
    main()
