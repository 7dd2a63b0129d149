"""Labels: read for a model with classes only, one class per image, in what conditions a network."""

import dataclasses

import classes
import numpy as np
import pytest
import tiny
from sklearn import datasets

from idode_gin.checkpoints import saving
from idode_gin.feed import batches, data, labels, loading
from idode_gin.feed.augmentation import Augmentation
from idode_gin.networks.unet import UNet
from idode_gin.runs import facts, run_inputs

NUMBER = 12


def one_hot(of):
    return np.eye(classes.COUNT, dtype=np.float32)[of]


@pytest.mark.parametrize(
    "given", [[0, 2, 1], np.array([[0], [2], [1]], np.int64), np.uint8([0, 2, 1])]
)
def test_labels_become_one_number_per_image(given):
    found = labels.check(np.asarray(given), 3, 3)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [0, 2, 1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "conditioned on one of 3 classes, got no labels"),
        ([0, 1, 3], r"labels in 0..2.*got 3 for image 2. Set NUM_CLASSES"),
        ([0, -1, 3], "got -1 for image 1"),
        ([0.0, 1.0, 2.0], r"one integer label for each of 3 images, got float64 \[3\]"),
        ([True, False, True], "got bool"),
        (["a", "b", "c"], "got <U1"),
        ([0, 1], r"each of 3 images, got int64 \[2\]"),
        ([[0, 1], [1, 2], [2, 0]], r"got int64 \[3, 2\]. Number the classes 0 to 2"),
    ],
)
def test_labels_that_are_no_classes_are_refused(given, message):
    with pytest.raises(ValueError, match=f"The split must .*{message}"):
        labels.check(given and np.asarray(given), 3, 3, "The split")


def test_classes_are_listed_by_number_and_name():
    assert labels.listed(3, classes.NAMES) == "0 dark, 1 grey, 2 light"
    assert labels.listed(3) == labels.listed(3, ("0", "1", "2")) == "0 to 2"
    many = labels.listed(100, [f"kind {number}" for number in range(100)])
    assert many.startswith("0 kind 0, 1 kind 1, ")
    assert many.endswith(", 9 kind 9 … 99 kind 99")
    with pytest.raises(ValueError, match=r"one of 3 classes \(0 dark, 1 grey, 2 light\), got no"):
        labels.check(None, 3, 3, names=classes.NAMES)


def test_other_names_than_those_trained_with_are_reported(caplog):
    split = classes.split(NUMBER)
    for trained, is_told in ((["dark", "light", "grey"], True), (list(classes.NAMES), False)):
        restored = saving.RestoredParams({}, 1, "c", {"class_names": trained})
        run_inputs.warn_of_classes(split, restored)
        assert ("trained with 0 dark, 1 light, 2 grey" in caplog.text) == is_told
        caplog.clear()


def test_without_labels_batches_and_facts_are_as_ever():
    split = classes.unlabelled(NUMBER)
    batch = batches.train_batch(split, tiny.config(5), 1)
    assert batch["conditioning"].shape == (5, 1)
    for found in (split.facts(), facts.image_facts(split, split)):
        assert not any("label" in name or "classes" in name for name in found)
    np.testing.assert_array_equal(split.conditioning_of(np.arange(3)), split.conditioning[:3])


def test_every_batch_holds_each_image_s_own_class():
    split = classes.split(NUMBER)
    config = tiny.config(5)
    for batch in (batches.train_batch(split, config, 7), *batches.eval_batches(split, 5)):
        np.testing.assert_array_equal(batch["conditioning"][:, 0], 0)
        expected = one_hot(split.labels[batch["index"]])
        np.testing.assert_array_equal(batch["conditioning"][:, 1:], expected)
    # Images, order and everything else are those of the split without labels.
    plain = batches.train_batch(classes.unlabelled(NUMBER), config, 7)
    batch = batches.train_batch(split, config, 7)
    for name in plain.keys() - {"conditioning"}:
        np.testing.assert_array_equal(batch[name], plain[name])


def test_the_bits_of_an_augmentation_come_before_the_class():
    split = dataclasses.replace(classes.split(NUMBER), augmentation=Augmentation())
    plain = dataclasses.replace(classes.unlabelled(NUMBER), augmentation=Augmentation())
    batch = batches.train_batch(split, tiny.config(9), 1)
    bits = batches.train_batch(plain, tiny.config(9), 1)["conditioning"]
    assert 0 < bits.sum() < len(bits)
    np.testing.assert_array_equal(
        batch["conditioning"], np.hstack([bits, one_hot(split.labels[batch["index"]])])
    )


def test_facts_change_with_the_labels():
    split = classes.split(NUMBER)
    other = dataclasses.replace(split, labels=split.labels[::-1].copy())
    assert split.facts()["num_classes"] == classes.COUNT
    assert split.facts()["labels_sha256"] != other.facts()["labels_sha256"]
    saved, now = facts.image_facts(split, split), facts.image_facts(other, other)
    assert len(facts.changed(saved, now)) == 2  # of the images trained on and of those scored
    assert split.fingerprint == classes.unlabelled(NUMBER).fingerprint


def load(model, monkeypatch, given=None, **changes):
    monkeypatch.setattr(loading, "load_split", lambda config: classes.unlabelled(NUMBER))
    monkeypatch.setattr(loading, "load_labels", lambda config, count: given)
    monkeypatch.setattr(loading, "class_names", lambda config: classes.NAMES)
    return run_inputs.load(tiny.config(**changes), model)


def test_a_model_of_classes_needs_labels(monkeypatch):
    split = load(classes.model(), monkeypatch, classes.labels(NUMBER))
    np.testing.assert_array_equal(split.labels, classes.labels(NUMBER))
    with pytest.raises(
        ValueError, match=r"Split 'test' of 'c' must .* got no labels.*NUM_CLASSES = 0"
    ):
        load(classes.model(), monkeypatch, None)
    with pytest.raises(ValueError, match="got 3 for image 4"):
        load(classes.model(), monkeypatch, np.full(NUMBER, 2) + (np.arange(NUMBER) == 4))


def test_a_model_without_classes_reads_none(monkeypatch):
    def read(config, count):
        raise AssertionError

    monkeypatch.setattr(loading, "load_split", lambda config: classes.unlabelled(NUMBER))
    monkeypatch.setattr(loading, "load_labels", read)
    network = UNet(channels=8, levels=0, groups=2)
    assert run_inputs.load(tiny.config(), tiny.model(network=network)).labels is None


def of_task(name, count, **changes):
    config = data.DatasetConfig(mixture_or_task_name=name, batch_size=1, **changes)
    return loading.load_labels(config, count)


def test_digits_are_labelled_as_by_scikit_learn():
    digits = datasets.load_digits()
    known = {
        each.tobytes(): label for each, label in zip(digits.images, digits.target, strict=True)
    }
    for split in ("train", "test"):
        config = data.DatasetConfig(mixture_or_task_name="digits", split=split, batch_size=1)
        images = loading.load_split(config).images[..., 0].astype(float)
        found = of_task("digits", 10, split=split)
        np.testing.assert_array_equal(found, [known[each.tobytes()] for each in images])


def test_labels_of_a_task_of_one_s_own_are_its_feature():
    import seqio
    import tensorflow as tf

    numbers = np.arange(9).reshape(3, 3)

    def register(name, examples):
        features = {"image": seqio.ContinuousFeature(dtype=tf.uint8, rank=3)}

        def dataset_fn(split, shuffle_files=False):
            return tf.data.Dataset.from_tensor_slices(examples)

        source = seqio.FunctionDataSource(dataset_fn, splits=("train",))
        seqio.TaskRegistry.add(name, source=source, preprocessors=[], output_features=features)

    images = np.zeros((3, 2, 2, 1), np.uint8)
    register("own_labelled", {"image": images, "label": numbers[:, 0]})
    register("own_unlabelled", {"image": images})
    seqio.MixtureRegistry.add("own_some", [("own_labelled", 1), ("own_unlabelled", 1)])
    seqio.MixtureRegistry.add("own_twice", [("own_labelled", 1)])
    try:
        np.testing.assert_array_equal(of_task("own_labelled", 9, split="train"), [0, 3, 6])
        np.testing.assert_array_equal(of_task("own_twice", 9, split="train"), [0, 3, 6])
        assert of_task("own_unlabelled", 9, split="train") is None
        assert of_task("own_some", 9, split="train") is None
    finally:
        for name in ("own_some", "own_twice"):
            seqio.MixtureRegistry.remove(name)
        for name in ("own_labelled", "own_unlabelled"):
            seqio.TaskRegistry.remove(name)
