"""Batches: every image, in the promised order, whoever asks for how much of it."""

import dataclasses
import threading
import time
from collections import Counter

import made
import numpy as np
import pytest

from idode_gin.feed import augmentation, batches
from idode_gin.feed.augmentation import Augmentation, BitPerKind

# Training order.


@pytest.mark.parametrize("batch_size", [1, 3, 7, 17])  # 17: more than two epochs in a batch
def test_every_epoch_is_a_permutation_of_the_split(batch_size):
    split, config = made.split(), made.config(batch_size=batch_size)
    found = [batches.train_batch(split, config, step) for step in range(7)]
    stream = np.concatenate([batch["index"] for batch in found])
    epochs = stream.reshape(-1, split.num_images)  # 7 steps make batch_size whole epochs
    assert len(epochs) == batch_size
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(split.num_images))
    assert batch_size < 3 or len({tuple(epoch) for epoch in epochs}) > 1


def test_batch_boundaries_do_not_change_the_order():
    split = made.split()
    by_size = {
        size: np.concatenate(
            [
                batches.train_batch(split, made.config(batch_size=size), step)["index"]
                for step in range(60 // size)
            ]
        )
        for size in (1, 4, 5, 60)
    }
    for order in by_size.values():
        np.testing.assert_array_equal(order, by_size[1])


def test_a_step_does_not_depend_on_the_steps_before_it():
    split, config = made.split(50), made.config(batch_size=8, seed=4)
    forward = [batches.train_batch(split, config, step)["index"] for step in range(20)]
    batches.epoch_order.cache_clear()
    backward = [batches.train_batch(split, config, step)["index"] for step in reversed(range(20))]
    np.testing.assert_array_equal(forward, backward[::-1])


def test_the_order_is_the_recorded_one():
    # A change here makes resumed runs see other images: it has to be meant.
    assert batches.epoch_order(0, 0, 8).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    assert batches.epoch_order(3, 5, 8).tolist() == [6, 4, 3, 2, 0, 7, 5, 1]


def test_seeds_and_epochs_give_different_orders():
    orders = {
        tuple(batches.epoch_order(seed, epoch, 30)) for seed in range(4) for epoch in range(4)
    }
    assert len(orders) == 16


def test_orders_are_uniform():
    # Each of the 6 orders of 3 images: 6,000 draws, standard deviation 29.
    seen = Counter(tuple(batches.epoch_order(0, epoch, 3)) for epoch in range(6000))
    assert len(seen) == 6
    assert all(abs(count - 1000) < 150 for count in seen.values())


def test_without_shuffling_the_split_repeats_in_its_own_order():
    split, config = made.split(), made.config(batch_size=5, shuffle=False)
    stream = [batches.train_batch(split, config, step)["index"] for step in range(3)]
    np.testing.assert_array_equal(np.concatenate(stream), np.arange(15) % 7)


def test_a_training_batch_holds_the_images_that_its_index_names():
    split, config = made.split(), made.config(batch_size=5)
    batch = batches.train_batch(split, config, 1)
    np.testing.assert_array_equal(batch["image"], split.images[batch["index"]])
    np.testing.assert_array_equal(batch["conditioning"], split.conditioning[batch["index"]])
    np.testing.assert_array_equal(batch["position"], np.arange(5))
    np.testing.assert_array_equal(batch["mask"], np.ones(5))
    types = {name: array.dtype.name for name, array in batch.items()}
    assert types == {
        "image": "uint8",
        "conditioning": "float32",
        "position": "int32",
        "index": "int32",
        "mask": "float32",
    }


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match="step=-1"):
        batches.train_batch(made.split(), made.config(), -1)


# Shares of processes.


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 8, 20])  # 20: almost three epochs in a batch
def test_shares_together_are_the_batch(processes, batch_size):
    split = made.split(shape=(2, 2, 3))
    split = dataclasses.replace(split, augmentation=Augmentation(channels=True))
    config = made.config(batch_size=batch_size)
    for step in range(4):
        whole = batches.train_batch(split, config, step)
        rows = np.split(np.arange(batch_size), processes)
        parts = [batches.train_batch(split, config, step, each) for each in rows]
        assert {len(part["image"]) for part in parts} == {batch_size // processes}
        for name, values in joined(parts).items():
            np.testing.assert_array_equal(values, whole[name], err_msg=name)
    for rows_of_all in zip(
        *(batches.eval_batches(split, batch_size, each) for each in rows), strict=True
    ):
        merged = joined(rows_of_all)
        real = merged["mask"] == 1
        np.testing.assert_array_equal(merged["image"][real], split.images[merged["index"][real]])


def test_a_share_reads_no_other_images():
    split, config = made.split(50), made.config(batch_size=40)
    rows = np.asarray([3, 4])
    batch = batches.train_batch(split, config, 0, rows)
    assert batch["image"].shape[0] == batch["index"].size == 2
    whole = batches.train_batch(split, config, 0)
    np.testing.assert_array_equal(batch["index"], whole["index"][rows])


# Augmentation.


def augmented(channels=True, bits=None, num_images=40, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (num_images, 4, 4, 3), dtype=np.uint8)
    kinds = Augmentation(channels=channels, bits=bits or BitPerKind())
    conditioning = np.zeros((num_images, kinds.conditioning_size), np.float32)
    split = made.split(num_images)
    return dataclasses.replace(split, images=images, conditioning=conditioning, augmentation=kinds)


def test_an_image_is_augmented_by_seed_epoch_and_place_alone():
    """Whatever the batch size: what epoch 1 makes of each image is the same."""
    split, found = augmented(), []
    for batch_size in (1, 7, 40, 300):
        config, seen = made.config(batch_size=batch_size, seed=3), {}
        for step in range(-(-80 // batch_size)):
            batch = batches.train_batch(split, config, step)
            place = step * batch_size + batch["position"]
            for row in np.flatnonzero((place >= 40) & (place < 80)):
                seen[int(batch["index"][row])] = (
                    batch["image"][row].tobytes(),
                    batch["conditioning"][row].tobytes(),
                )
        assert len(seen) == 40
        found.append(seen)
    assert found[1:] == found[:-1]


def test_an_image_is_augmented_alike_in_every_order_of_its_epoch():
    """By its place in the split, whatever its place in the epoch."""
    split, index = augmented(), np.arange(40)
    codes = split.augmentation.codes(3, 1, index, channels=3)
    for shuffle in (False, True):
        config = made.config(batch_size=40, seed=3, shuffle=shuffle)
        batch = batches.train_batch(split, config, 1)
        order = np.argsort(batch["index"])
        assert np.array_equal(order, index) != shuffle
        np.testing.assert_array_equal(
            batch["image"][order], augmentation.apply(split.images, codes)
        )
        np.testing.assert_array_equal(batch["conditioning"][order], codes.applied)


def test_epochs_and_seeds_augment_differently():
    split = augmented()
    first, again, other = (
        batches.train_batch(split, made.config(batch_size=40, seed=seed, shuffle=False), step)
        for seed, step in ((0, 0), (0, 1), (1, 0))
    )
    for each in (again, other):
        same = np.all(each["image"] == first["image"], axis=(1, 2, 3))
        assert same.mean() < 0.5


def test_conditioning_tells_what_was_done():
    split = augmented()
    batch = batches.train_batch(split, made.config(batch_size=40), 0)
    untouched = ~batch["conditioning"].any(axis=1)
    assert 0 < untouched.sum() < 20
    np.testing.assert_array_equal(
        batch["image"][untouched], split.images[batch["index"][untouched]]
    )
    changed = np.any(batch["image"] != split.images[batch["index"]], axis=(1, 2, 3))
    assert not np.any(changed & untouched)


def test_evaluation_is_never_augmented():
    split = augmented()
    (batch,) = batches.eval_batches(split, 40)
    np.testing.assert_array_equal(batch["image"], split.images)
    np.testing.assert_array_equal(batch["conditioning"], np.zeros((40, 3)))


# Evaluation order.


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_evaluation_sees_every_image_exactly_once_in_order(batch_size):
    split = made.split()
    found = list(batches.eval_batches(split, batch_size))
    assert {len(batch["image"]) for batch in found} == {batch_size}
    real = np.concatenate([batch["mask"] for batch in found]) == 1
    index = np.concatenate([batch["index"] for batch in found])
    images = np.concatenate([batch["image"] for batch in found])
    np.testing.assert_array_equal(index[real], np.arange(7))
    np.testing.assert_array_equal(images[real], split.images)
    np.testing.assert_array_equal(index[~real], 0)
    np.testing.assert_array_equal(images[~real], 0 * images[~real])  # image 0 holds zeros
    assert real.sum() == 7
    assert len(real) < 7 + batch_size


def test_some_images_of_a_split_keep_their_places():
    split = made.split()
    some = split.some(3)
    for index in (None, np.asarray([0, 1, 2])):
        (batch,) = batches.eval_batches(some, 3, index=index)
        assert batch["index"].tolist() == [0, 3, 6]
        np.testing.assert_array_equal(batch["image"], split.images[[0, 3, 6]])
    trained = batches.train_batch(some, made.config(batch_size=3), 0)
    np.testing.assert_array_equal(trained["image"], split.images[trained["index"]])


def test_evaluation_of_the_images_that_are_left():
    split, rows = made.split(), np.asarray([0, 2])
    left = np.asarray([1, 4, 5, 6])
    found = list(batches.eval_batches(split, 3, rows, left))
    assert [batch["index"].tolist() for batch in found] == [[1, 5], [6, 0]]
    assert [batch["mask"].tolist() for batch in found] == [[1, 1], [1, 0]]
    for batch in found:
        np.testing.assert_array_equal(batch["image"], split.images[batch["index"]])
    assert list(batches.eval_batches(split, 3, rows, left[:0])) == []


def test_evaluation_refuses_an_empty_batch_at_once():
    with pytest.raises(ValueError, match="batch_size=0"):
        batches.eval_batches(made.split(), 0)


# The background thread.


def test_prefetch_changes_nothing():
    assert list(batches.prefetch(iter(range(50)))) == list(range(50))
    assert list(batches.prefetch([])) == []


def test_prefetch_looks_ahead_by_no_more_than_its_size():
    made = []

    def source():
        for number in range(100):
            made.append(number)
            yield number

    ahead = batches.prefetch(source(), size=2)
    assert next(ahead) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 4  # one taken, two queued, one in the thread's hand
    ahead.close()


def test_prefetch_raises_what_its_source_raised_after_the_items_before_it():
    def source():
        yield 1
        yield 2
        raise OSError("disk on fire")

    ahead = batches.prefetch(source(), size=5)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(OSError, match="disk on fire"):
        next(ahead)


@pytest.mark.parametrize("taken", [1, 3])
def test_closing_prefetch_ends_its_thread(taken):
    def threads():
        return {each for each in threading.enumerate() if each.name.startswith("prefetch")}

    before = threads()
    ahead = batches.prefetch(iter(range(10**9)), size=1)
    assert [next(ahead) for _ in range(taken)] == list(range(taken))
    assert len(threads() - before) == 1
    ahead.close()
    assert not threads() - before


def test_prefetch_refuses_to_look_zero_ahead():
    with pytest.raises(ValueError, match="size=0"):
        batches.prefetch([], size=0)
