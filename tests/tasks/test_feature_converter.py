"""The feature converter: whole images, every one, or an error that names what would be lost."""

import fake_tfds
import numpy as np
import pytest

SHAPE = (6, 8, 3)
NUM_IMAGES = 10


@pytest.fixture(scope="module")
def tf():
    import tensorflow as tf

    return tf


@pytest.fixture(scope="module")
def converter():
    from tasks.support.feature_converter import ImageFeatureConverter

    return ImageFeatureConverter


@pytest.fixture(scope="module")
def images():
    return fake_tfds.random_images(NUM_IMAGES, SHAPE)


@pytest.fixture
def task(images):
    import seqio

    from tasks import register_images

    register_images("made_converted", {"train": NUM_IMAGES}, lambda split: images)
    yield "made_converted"
    seqio.TaskRegistry.remove("made_converted")


def get(task, converter, lengths, **options):
    import seqio

    return seqio.get_dataset(task, lengths, converter(), dataset_split="train", **options)


@pytest.mark.parametrize(
    "lengths",
    [
        {},
        None,
        {"image": 6},
        {"image": (6, 8, 3)},
        {"image": [6, 8]},
        {"image": (None, 8, None)},
        {"image": None},
    ],
)
def test_lengths_of_the_whole_image_are_accepted(task, converter, images, lengths):
    dataset = get(task, converter, lengths)
    np.testing.assert_array_equal(fake_tfds.images_of(dataset), images)


@pytest.mark.parametrize(
    "length", [5, 7, 32, (6, 7, 3), (5, 8, 3), (6, 8, 1), (6, 8, 4), (6, 8, 3, 1), [7], 0]
)
def test_lengths_that_would_crop_or_outgrow_an_image_are_refused(task, converter, length):
    with pytest.raises(ValueError, match=r'"image" is \[6, 8, 3\], got ') as caught:
        get(task, converter, {"image": length})
    assert str(length) in str(caught.value)
    assert "crop" in str(caught.value)


def test_a_task_refuses_to_be_cropped_whoever_asks(task):
    import seqio

    with pytest.raises(ValueError, match="must not change an image"):
        seqio.get_mixture_or_task(task).get_dataset({"image": 4}, split="train")


def test_a_converter_refuses_lengths_that_a_foreign_task_lets_pass(tf, converter):
    dataset = tf.data.Dataset.from_tensors({"image": np.zeros(SHAPE, np.uint8)})
    with pytest.raises(ValueError, match="must not change an image"):
        converter()(dataset, {"image": 7})


def test_lengths_of_other_features_are_refused(task, converter):
    with pytest.raises(ValueError, match="names 'inputs', but images have only 'image', 'cond"):
        get(task, converter, {"inputs": 6})


@pytest.mark.parametrize("options", [{"pack": True}, {"pack": False}, {}])
def test_packing_is_accepted_and_means_nothing(task, converter, images, options):
    import seqio

    made = converter(use_custom_packing_ops=False, apply_length_check=True, **options)
    assert made.pack is False  # seqio's Evaluator takes no other
    dataset = seqio.get_dataset(task, {"image": 6}, made, dataset_split="train")
    np.testing.assert_array_equal(fake_tfds.images_of(dataset), images)
    assert set(dataset.element_spec) == set(converter.MODEL_FEATURES)


def test_conditioning_is_passed_on_and_its_absence_is_a_zero(tf, converter):
    image = np.zeros(SHAPE, np.uint8)
    told = {"image": image, "conditioning": np.array([1, 0, 1], np.float32), "label": 3}
    for features, expected in ((told, [1, 0, 1]), ({"image": image}, [0])):
        (example,) = converter()(tf.data.Dataset.from_tensors(features)).as_numpy_iterator()
        assert set(example) == {"image", "conditioning"}
        np.testing.assert_array_equal(example["conditioning"], np.array(expected, np.float32))


def test_lengths_of_the_model_name_the_models_features(converter):
    assert converter().get_model_feature_lengths({"image": 6}) == {"image": 6, "conditioning": 1}
    assert set(converter.TASK_FEATURES) == {"image", "conditioning"}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"pixels": np.zeros(SHAPE, np.uint8)}, 'must yield "image", got pixels'),
        ({"image": np.zeros(SHAPE, np.float32)}, '"image" must be uint8 of rank 3 .* got float32'),
        ({"image": np.zeros(SHAPE[:2], np.uint8)}, r'"image" must be .* got uint8 \(6, 8\)'),
        (
            {"image": np.zeros(SHAPE, np.uint8), "conditioning": np.float32(1)},
            r'"conditioning" must be float32 of rank 1 .* shape \[1\]',
        ),
    ],
)
def test_features_it_does_not_understand_are_refused(tf, converter, features, message):
    with pytest.raises(ValueError, match=message):
        converter()(tf.data.Dataset.from_tensors(features), {})


def test_images_of_an_unknown_size_are_refused(tf, converter):
    spec = {"image": tf.TensorSpec((None, None, 3), tf.uint8)}
    dataset = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=spec)
    with pytest.raises(ValueError, match=r"Use tf\.ensure_shape"):
        converter()(dataset, {})


@pytest.mark.parametrize("batch_size", range(1, NUM_IMAGES + 3))
def test_no_image_of_an_epoch_is_dropped_in_silence(task, converter, images, batch_size):
    whole = get(task, converter, {}).batch(batch_size)
    found = np.concatenate([batch["image"] for batch in whole.as_numpy_iterator()])
    np.testing.assert_array_equal(found, images)
    if NUM_IMAGES % batch_size == 0:
        dataset = get(task, converter, {}, batch_size=batch_size)
        found = np.concatenate([batch["image"] for batch in dataset.as_numpy_iterator()])
        np.testing.assert_array_equal(found, images)
        return
    left = NUM_IMAGES % batch_size
    with pytest.raises(ValueError, match=f"would drop the last {left} of {NUM_IMAGES} images"):
        get(task, converter, {}, batch_size=batch_size)


def test_endless_training_takes_any_batch_size(task, converter, images):
    dataset = get(task, converter, {}, batch_size=4, num_epochs=None)
    batches = [batch["image"] for batch in dataset.take(5).as_numpy_iterator()]
    np.testing.assert_array_equal(np.concatenate(batches), np.concatenate([images, images]))


def test_an_unknown_number_of_images_is_not_batched_in_silence(tf, converter, images):
    """seqio asks for whole batches only; nobody can tell what that would drop."""
    known = tf.data.Dataset.from_tensor_slices({"image": images})
    unknown = known.filter(lambda example: True)
    assert unknown.cardinality() == tf.data.UNKNOWN_CARDINALITY
    with pytest.raises(ValueError, match="number of images is unknown.* Declare it with"):
        converter()(unknown).batch(4, drop_remainder=True)
    said = unknown.apply(tf.data.experimental.assert_cardinality(NUM_IMAGES))
    with pytest.raises(ValueError, match="would drop the last 2 of 10 images"):
        converter()(said).batch(4, drop_remainder=True)
    for dataset in (
        converter()(unknown).batch(4),
        converter()(said).batch(5, drop_remainder=True),
        converter()(unknown.repeat()).batch(4, drop_remainder=True).take(3),
    ):
        found = np.concatenate([batch["image"] for batch in dataset.as_numpy_iterator()])
        np.testing.assert_array_equal(found[:NUM_IMAGES], images)
