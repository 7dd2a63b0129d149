"""Images per second of the feed beside grain and plain seqio + tf.data, same machine, same images.

    python -m benchmarks.feed [--batch_size=1024] [--images=50000] [--repeats=5]

Synthetic 32 x 32 x 3 images stand in for CIFAR-10, in the on-disk cache and in a tf.data source.
Every feed delivers shuffled, augmented uint8 NumPy batches with their conditioning to the host:
mirrored, turned and with shuffled channels, each with probability 1/2. The feeds take turns, so
that a busy machine slows all; medians are printed, with their ratio to seqio. grain is measured
where it is installed (`pip install grain`), after the others: its threads would take their cores.

Also printed: seconds from opening the cache to the first batch, and the memory that takes, mapped
and whole, as a multiple of the decoded images.
"""

import argparse
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from idode_gin.runtime import augmentation, batches, data, image_cache

KINDS = augmentation.Augmentation(channels=True)
SHAPE = (32, 32, 3)


def images_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def open_cache(folder: str, count: int, memory_map: bool, is_augmented: bool) -> data.ImageSplit:
    def decode() -> Iterator[np.ndarray]:
        yield from np.array_split(images_of(count), 50)

    cached = image_cache.load(folder, "made", str(count), decode, memory_map=memory_map)
    return data.ImageSplit(
        images=cached.images,
        conditioning=np.zeros((count, 1), np.float32),
        name="made",
        split="train",
        augmentation=KINDS if is_augmented else None,
        known_fingerprint=cached.fingerprint,
    )


def ours(split: data.ImageSplit, batch_size: int) -> Iterator[Any]:
    config = data.DatasetConfig(
        mixture_or_task_name="made", split="train", batch_size=batch_size, shuffle=True
    )
    step = 0
    while True:
        yield batches.train_batch(split, config, step)
        step += 1


def grain_batches(split: data.ImageSplit, batch_size: int) -> Iterator[Any]:
    import grain.python as grain

    class Augment(grain.RandomMapTransform):
        def random_map(self, element: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
            codes = KINDS.codes(int(rng.integers(2**31)), 0, np.asarray([element]))
            return {
                "image": augmentation.apply(split.images[element][None], codes)[0],
                "conditioning": KINDS.bits(codes.applied)[0],
            }

    dataset = grain.MapDataset.range(split.num_images).shuffle(seed=0).repeat()
    dataset = dataset.random_map(Augment(), seed=0).batch(batch_size)
    return iter(dataset.to_iter_dataset())


def seqio_batches(split: data.ImageSplit, batch_size: int) -> Iterator[Any]:
    import seqio
    import tensorflow as tf

    images = np.asarray(split.images)

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

    task = seqio.Task(
        "made_for_benchmark",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
                {"image": images}
            ),
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


def images_per_second(feed: Iterator[Any], batch_size: int, seconds: float = 2.0) -> float:
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(feed)
        count += batch_size
    return count / (time.perf_counter() - began)


def peak_bytes() -> int:
    """Most memory this process ever had; unlike ru_maxrss, not what its parent had."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    return 1024 * int(line)


def report_opening(folder: str, count: int, batch_size: int) -> None:
    """Runs in a process of its own, so that its memory is its own."""
    decoded = count * int(np.prod(SHAPE))
    for memory_map in (True, False):
        script = (
            "import time; from benchmarks import feed\n"
            "before = feed.peak_bytes(); began = time.time()\n"
            f"split = feed.open_cache({folder!r}, {count}, {memory_map}, True)\n"
            f"next(feed.ours(split, {batch_size})); first = time.time() - began\n"
            "print(first, feed.peak_bytes() - before)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        first, memory = map(float, done.stdout.split())
        print(
            f"{'memory-mapped' if memory_map else 'in memory':<16} first batch in {first:.2f} s, "
            f"{memory / 1e6:.0f} MB more memory, {memory / decoded:.2f} of the decoded images"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=1024)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(args, folder)


def measure(args: argparse.Namespace, folder: str) -> None:
    split = open_cache(folder, args.images, True, True)
    report_opening(folder, args.images, args.batch_size)
    plain = open_cache(folder, args.images, True, False)
    makers: dict[str, Callable[[], Iterator[Any]]] = {
        "feed": lambda: ours(split, args.batch_size),
        "feed, prefetched": lambda: batches.prefetch(ours(split, args.batch_size)),
        "feed, no augmentation": lambda: ours(plain, args.batch_size),
        "seqio + tf.data": lambda: seqio_batches(split, args.batch_size),
    }
    feeds = {name: make() for name, make in makers.items()}
    for each in feeds.values():
        next(each)  # buffers fill, functions are traced
    rates: dict[str, list[float]] = {name: [] for name in feeds}
    for _ in range(args.repeats):
        for name, each in feeds.items():
            rates[name].append(images_per_second(each, args.batch_size))
    try:
        last = grain_batches(split, args.batch_size)
        rates["grain"] = [images_per_second(last, args.batch_size) for _ in range(args.repeats)]
    except ImportError:
        print("grain is not installed and not measured.")
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, median in medians.items():
        ratio = median / medians["seqio + tf.data"]
        print(f"{name:<24} {median:>10,.0f} images/s   {ratio:6.1f} x seqio + tf.data")


if __name__ == "__main__":
    main()
