"""Images per second of the in-memory feed beside plain seqio + tf.data, on `photo_patches`.

    python -m benchmarks.feed [--batch_size=128] [--batches=2000] [--repeats=7]

They take turns, so that a busy machine slows all; medians are printed, with their ratio to seqio.
Each delivers shuffled uint8 NumPy batches to the host. seqio is given its best case: pixels in
memory, nothing to decode and no feature converter.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator

from idode_gin.runtime import data

TASK = "photo_patches"


def seqio_batches(batch_size: int) -> Iterator[data.Batch]:
    import seqio
    import tensorflow as tf

    dataset = seqio.get_mixture_or_task(TASK).get_dataset(
        sequence_length=None, split="train", shuffle=True, seed=None, num_epochs=None
    )
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return iter(dataset.as_numpy_iterator())


def feed_batches(split: data.ImageSplit, batch_size: int) -> Iterator[data.Batch]:
    config = data.DatasetConfig(mixture_or_task_name=TASK, split="train", batch_size=batch_size)
    return (data.train_batch(split, config, step) for step in itertools.count())


def images_per_second(batches: Iterator[data.Batch], number: int) -> float:
    started = time.perf_counter()
    seen = sum(len(batch["image"]) for batch in itertools.islice(batches, number))
    return seen / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=2000, help="batches per measurement")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    split = data.load_split(
        data.DatasetConfig(mixture_or_task_name=TASK, split="train", batch_size=args.batch_size)
    )
    feeds = {
        "in-memory feed": feed_batches(split, args.batch_size),
        "in-memory feed, prefetched": data.prefetch(feed_batches(split, args.batch_size)),
        "seqio + tf.data": seqio_batches(args.batch_size),
    }
    rates: dict[str, list[float]] = {name: [] for name in feeds}
    for batches in feeds.values():
        images_per_second(batches, args.batches)  # warm up: buffers fill, functions are traced
    for _ in range(args.repeats):
        for name, batches in feeds.items():
            rates[name].append(images_per_second(batches, args.batches))

    medians = {name: statistics.median(values) for name, values in rates.items()}
    slowest = medians["seqio + tf.data"]
    print(f"{TASK}, {'x'.join(map(str, split.image_shape))}, batches of {args.batch_size}:")
    for name, median in medians.items():
        low, high = min(rates[name]), max(rates[name])
        print(
            f"  {name:27s} {median:10,.0f} images/s (median of {args.repeats}, "
            f"{low:,.0f} to {high:,.0f}), {median / slowest:5.1f} x"
        )


if __name__ == "__main__":
    main()
