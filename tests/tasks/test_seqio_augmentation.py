"""Augmentation for seqio's users: the same meaning as the feed's own, seeded, never in evaluation.

The law is an identity with NumPy's `apply`; chances are compared with binomial bounds.
"""

import itertools

import fake_tfds
import numpy as np
import pytest

from idode_gin.feed import augmentation as numpy_augmentation
from idode_gin.feed.augmentation import Augmentation, BitPerKind, Codes

ORDERS = 6
EVERY_CODE = list(itertools.product((False, True), range(4), range(ORDERS)))


@pytest.fixture(scope="module")
def tf():
    import tensorflow as tf

    return tf


@pytest.fixture(scope="module")
def augmenting():
    from tasks.support import augmenting

    return augmenting


@pytest.fixture(scope="module")
def images():
    return fake_tfds.random_images(400, (4, 4, 3))


@pytest.fixture
def make_source(images):
    """A source in memory whose splits are all the same images."""
    from tasks.support.array_images import ArrayImages

    sizes = dict.fromkeys(("train", "validation", "test"), len(images))
    return lambda augmentation: ArrayImages(sizes, lambda split: images, augmentation=augmentation)


def read(name, **options):
    import seqio

    task = seqio.get_mixture_or_task(name)
    examples = list(task.get_dataset(shuffle=False, **options).as_numpy_iterator())
    return [np.stack([each[key] for each in examples]) for key in ("image", "conditioning")]


def all_versions(image):
    """Every version of `[H, W, C]`, in the order of EVERY_CODE."""
    flip, turns, order = map(np.array, zip(*EVERY_CODE, strict=True))
    codes = Codes(flip=flip, turns=turns, order=order, applied=np.zeros((len(flip), 3), bool))
    return numpy_augmentation.apply(np.repeat(image[None], len(flip), axis=0), codes)


def codes_of(before, after):
    """Place in EVERY_CODE of what turned one image into the other; they are distinct."""
    same = (all_versions(before) == after).all(axis=(1, 2, 3))
    assert same.sum() == 1
    return EVERY_CODE[int(np.argmax(same))]


@pytest.mark.parametrize("code", EVERY_CODE)
def test_every_code_means_what_it_means_in_numpy(tf, augmenting, images, code):
    flip, turns, order = code
    found = augmenting.apply(tf.constant(images[0]), tf.constant(flip), turns, order)
    assert found.shape == images[0].shape
    np.testing.assert_array_equal(found, all_versions(images[0])[EVERY_CODE.index(code)])


def test_a_code_by_hand(tf, augmenting):
    # Mirror, then a quarter turn counter-clockwise, then the channels in the order 1, 0, 2.
    image = np.array([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]], np.uint8)
    order = numpy_augmentation.channel_orders(3).index((1, 0, 2))
    found = augmenting.apply(tf.constant(image), tf.constant(True), 1, order)
    by_hand = [[[2, 1, 3], [8, 7, 9]], [[5, 4, 6], [11, 10, 12]]]
    np.testing.assert_array_equal(found, by_hand)


@pytest.mark.parametrize("bits", [numpy_augmentation.AnyBit(), BitPerKind()])
def test_training_images_are_augmented_and_the_bits_say_how(make_source, images, bits):
    augmentation = Augmentation(channels=True, bits=bits)
    with fake_tfds.task("made_augmented", make_source(augmentation)) as name:
        after, conditioning = read(name, split="train", seed=3)
    codes = [codes_of(*pair) for pair in zip(images, after, strict=True)]
    flips, turns, orders = map(np.array, zip(*codes, strict=True))
    assert conditioning.shape == (len(images), augmentation.conditioning_size)
    assert conditioning.dtype == np.float32
    if isinstance(bits, BitPerKind):
        np.testing.assert_array_equal(conditioning[:, 0], flips)
        np.testing.assert_array_equal(conditioning[:, 1], turns > 0)
        assert (conditioning[:, 2] >= (orders > 0)).all()
        kept = (conditioning[:, 2] == 1) & (orders == 0)  # the coin fell, the order is the old one
        assert kept.any()
    else:
        changed = flips | (turns > 0) | (orders > 0)
        assert (conditioning[:, 0] >= changed).all()
    # Five standard deviations of a binomial with 400 trials.
    for found, chance in (
        (flips.mean(), 1 / 2),
        *((np.mean(turns == turn), 1 / 6) for turn in (1, 2, 3)),
        *((np.mean(orders == order), 1 / 12) for order in range(1, ORDERS)),
        (conditioning.mean() if isinstance(bits, BitPerKind) else 1 / 2, 1 / 2),
        (conditioning.mean() if not isinstance(bits, BitPerKind) else 7 / 8, 7 / 8),
    ):
        assert abs(found - chance) < 5 * np.sqrt(chance * (1 - chance) / len(images))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_is_never_augmented(make_source, images, split):
    source = make_source(Augmentation(channels=True, bits=BitPerKind()))
    with fake_tfds.task("made_augmented", source) as name:
        after, conditioning = read(name, split=split, seed=3)
    np.testing.assert_array_equal(after, images)
    np.testing.assert_array_equal(conditioning, np.zeros((len(images), 3), np.float32))


def test_kinds_that_are_switched_off_do_not_happen(make_source, images):
    source = make_source(Augmentation(rotation=False))
    with fake_tfds.task("made_augmented", source) as name:
        after, conditioning = read(name, split="train", seed=3)
    flips = conditioning[:, 0] == 1
    np.testing.assert_array_equal(after[flips], images[flips][:, :, ::-1])
    np.testing.assert_array_equal(after[~flips], images[~flips])


def test_a_seed_decides_everything_and_none_is_a_fresh_one(make_source):
    with fake_tfds.task("made_augmented", make_source(Augmentation())) as name:
        first, again, other, fresh, fresh_again = (
            read(name, split="train", seed=seed)[0] for seed in (3, 3, 4, None, None)
        )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (fresh != fresh_again).any()


def test_every_epoch_is_augmented_anew_although_seqio_keeps_the_images(make_source, images):
    with fake_tfds.task("made_augmented", make_source(Augmentation())) as name:
        after, _ = read(name, split="train", seed=3, num_epochs=2)
    first, second = np.split(after, 2)
    assert len(second) == len(images)
    same = (first == second).all(axis=(1, 2, 3)).mean()
    # Alike by chance: flips 1/2, turns 1/4 + 3/36 = 1/3.
    assert same < 1 / 6 + 5 * np.sqrt(5 / 36 / len(images))


def test_the_plain_source_in_its_place_gives_plain_images(make_source, images):
    import seqio

    source = make_source(Augmentation())
    assert source.augmentation == Augmentation()
    with fake_tfds.task("made_augmented", source) as name:
        task = seqio.get_mixture_or_task(name).replace(source=make_source(None))
        dataset = task.get_dataset(split="train", shuffle=False, seed=3)
        np.testing.assert_array_equal(fake_tfds.images_of(dataset), images)


def test_images_that_cannot_be_turned_are_refused(tf, augmenting):
    wide = tf.data.Dataset.from_tensors({"image": np.zeros((4, 6, 3), np.uint8), "augment": True})
    with pytest.raises(ValueError, match="need square images, got 4 x 6"):
        augmenting.Augment(Augmentation())(wide)


def test_it_has_the_facts_of_the_plain_source():
    from tasks.formats.published import CIFAR10
    from tasks.support.tfds_images import TfdsImages

    plain, source = TfdsImages(CIFAR10), TfdsImages(CIFAR10, Augmentation())
    assert plain.augmentation is None
    assert source.name == plain.name == "cifar10"
    assert source.variant == plain.variant == "Krizhevsky"
    assert source.known("train") == plain.known("train")
    assert tuple(source.splits) == ("train", "test")
