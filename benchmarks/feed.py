"""The feed beside grain and plain seqio + tf.data: images per second, first batch, memory.

    python -m benchmarks.feed [--batch_sizes 1024 128] [--images 50000] [--repeats 3]

Synthetic 32 x 32 x 3 images stand in for CIFAR-10, in the on-disk cache. Every pipeline delivers
shuffled, augmented uint8 NumPy batches with their conditioning to the host: mirrored, turned and
with shuffled channels, each with probability 1/2. Each is measured in a process of its own, one
after the other, `repeats` rounds of all; medians are printed. grain is measured where it is
installed (`pip install grain`).

    images/s    over 3 seconds, after the first two batches
    per core    images per second of a core's time, which a busy machine does not change
    first       seconds from opening the cache to the first batch, without imports
    peak        most resident memory since the imports, as a multiple of the decoded images
    private     the same without mapped files, after the first batches or at the end
    load        mean load average of the machine; this process alone causes one or two

The first column of figures holds for two otherwise idle cores; see `load`.
"""

import argparse
import importlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import processes
from idode_gin.feed import augmentation, batches, data, image_cache

KINDS = augmentation.Augmentation(channels=True)
SHAPE = (32, 32, 3)
SECONDS = 3.0
Batches = Iterator[dict[str, np.ndarray]]


def open_cache(folder: str, count: int, memory_map: bool, is_augmented: bool) -> data.ImageSplit:
    def decode() -> Iterator[np.ndarray]:
        for seed, rows in enumerate(np.array_split(np.arange(count), 50)):
            yield np.random.default_rng(seed).integers(0, 256, (len(rows), *SHAPE), np.uint8)

    cached = image_cache.load(folder, "made", str(count), decode, memory_map=memory_map)
    return data.ImageSplit(
        images=cached.images,
        conditioning=np.broadcast_to(np.zeros((1, 1), np.float32), (count, 1)),
        name="made",
        split="train",
        augmentation=KINDS if is_augmented else None,
        known_fingerprint=cached.fingerprint,
    )


def ours(split: data.ImageSplit, batch_size: int) -> Batches:
    config = data.DatasetConfig(
        mixture_or_task_name="made", split="train", batch_size=batch_size, shuffle=True
    )
    step = 0
    while True:
        yield batches.train_batch(split, config, step)
        step += 1


def grain_batches(split: data.ImageSplit, batch_size: int) -> Batches:
    import grain.python as grain

    class Augment(grain.RandomMapTransform):
        def random_map(self, element: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
            image, coins = split.images[element], rng.random(3) < 0.5
            image = image[:, ::-1] if coins[0] else image
            image = np.rot90(image, int(rng.integers(1, 4))) if coins[1] else image
            image = image[..., rng.permutation(3)] if coins[2] else image
            return {"image": image, "conditioning": np.any(coins, keepdims=True).astype("f4")}

    dataset = grain.MapDataset.range(split.num_images).shuffle(seed=0).repeat()
    dataset = dataset.random_map(Augment(), seed=0).batch(batch_size)
    return iter(dataset.to_iter_dataset())


def seqio_batches(split: data.ImageSplit, batch_size: int) -> Batches:
    import seqio
    import tensorflow as tf

    def augment(example: dict[str, Any], seed: Any) -> dict[str, Any]:
        seed = tf.stack(seed)
        coins = tf.random.stateless_uniform([3], seed) < 0.5
        image = tf.where(coins[0], tf.image.flip_left_right(example["image"]), example["image"])
        turns = tf.random.stateless_uniform([], seed + 1, 1, 4, tf.int32)
        image = tf.where(coins[1], tf.image.rot90(image, turns), image)
        order = tf.random.experimental.stateless_shuffle([0, 1, 2], seed + 2)
        image = tf.where(coins[2], tf.gather(image, order, axis=2), image)
        told = tf.cast(tf.reduce_any(coins), tf.float32)[None]
        return {"image": tf.ensure_shape(image, SHAPE), "conditioning": told}

    images = split.images

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices({"image": images})

    task = seqio.Task(
        "made_for_benchmark",
        source=seqio.FunctionDataSource(
            dataset_fn,
            splits=("train",),
        ),
        preprocessors=[seqio.map_over_dataset(augment, num_seeds=1)],
        output_features={
            "image": seqio.ContinuousFeature(dtype=tf.uint8, rank=3),
            "conditioning": seqio.ContinuousFeature(dtype=tf.float32, rank=1),
        },
    )
    dataset = task.get_dataset(
        sequence_length=None, split="train", shuffle=True, seed=0, num_epochs=None
    )
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return iter(dataset.as_numpy_iterator())


def prefetched(split: data.ImageSplit, batch_size: int) -> Batches:
    return batches.prefetch(ours(split, batch_size))


PIPELINES: dict[str, tuple[Callable[[data.ImageSplit, int], Batches], bool, bool]] = {
    # how batches are made, whether the images stay on disk, whether they are augmented
    "feed, mapped": (ours, True, True),
    "feed, in memory": (ours, False, True),
    "feed, mapped, prefetched": (prefetched, True, True),
    "feed, mapped, as they are": (ours, True, False),
    "seqio + tf.data": (seqio_batches, True, True),
    "grain": (grain_batches, False, True),
}


def run_one(name: str, folder: str, count: int, batch_size: int) -> processes.Found | None:
    make, memory_map, is_augmented = PIPELINES[name]
    module = {"grain": "grain.python", "seqio + tf.data": "seqio"}.get(name)
    try:
        importlib.import_module(module or "numpy")  # not to be timed
    except ImportError:
        return None
    before, began = processes.memory(), time.perf_counter()
    feed = make(open_cache(folder, count, memory_map, is_augmented), batch_size)
    next(feed)
    first = time.perf_counter() - began
    next(feed)
    private = processes.memory()["private"]
    images, began, cpu = 0, time.perf_counter(), time.process_time()
    while (seconds := time.perf_counter() - began) < SECONDS:
        next(feed)
        images += batch_size
    cpu = time.process_time() - cpu
    private = max(private, processes.memory()["private"])
    decoded = count * float(np.prod(SHAPE))
    return {
        "rate": images / seconds,
        "per_core": images / cpu,
        "first": first,
        "peak": (processes.memory()["peak"] - before["peak"]) / decoded,
        "private": max(0.0, private - before["private"]) / decoded,
    }


def compare(folder: str, count: int, batch_size: int, repeats: int) -> None:
    found: dict[str, list[processes.Found]] = {}
    loads = []
    for _ in range(repeats):
        for name in PIPELINES:
            one = ["--one", name, folder, str(count), str(batch_size)]
            result = processes.measure("benchmarks.feed", one)
            loads.append(processes.load_average())
            if result is not None:
                found.setdefault(name, []).append(result)
    rows = {name: processes.medians(each) for name, each in found.items()}
    print(f"\nBatch {batch_size}, {count:,} images, load {np.mean(loads):.1f}:\n")
    print("| pipeline | images/s | x seqio | per core | x seqio | first, s | peak | private |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, row in rows.items():
        plain = rows["seqio + tf.data"]
        print(
            f"| {name} | {row['rate']:,.0f} | {row['rate'] / plain['rate']:.1f} "
            f"| {row['per_core']:,.0f} | {row['per_core'] / plain['per_core']:.1f} "
            f"| {row['first']:.2f} | {row['peak']:.2f} | {row['private']:.2f} |",
            flush=True,
        )
    if "grain" not in rows:
        print("\ngrain is not installed and was not measured.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1024, 128])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, folder, count, batch_size = args.one
        print(json.dumps(run_one(name, folder, int(count), int(batch_size))))
        return
    print(processes.conditions(["numpy", "tensorflow", "seqio", "grain"]))
    with tempfile.TemporaryDirectory() as folder:
        open_cache(folder, args.images, True, True)
        for batch_size in args.batch_sizes:
            compare(folder, args.images, batch_size, args.repeats)


if __name__ == "__main__":
    main()
