"""Bits per dim of a task by seqio's own Evaluator: every image once, and nothing else on disk."""

import importlib
import json

import numpy as np
import pytest


@pytest.fixture(scope="module")
def metric():
    from tasks.support.metrics import BitsPerDim

    return BitsPerDim


@pytest.fixture(scope="module")
def digits():
    return importlib.import_module("tasks.digits")


def evaluator(name, split, **options):
    import seqio

    from tasks.support.feature_converter import ImageFeatureConverter

    return seqio.Evaluator(
        name,
        ImageFeatureConverter(pack=False),
        eval_split=split,
        async_compute_metrics=False,
        **options,
    )


def fake_log_p(images):
    """Nats per image that tell images apart: minus the sum of their pixels."""
    return -images.reshape(len(images), -1).astype(np.float64).sum(axis=1)


def score(dataset):
    """A seqio score_fn, in batches that do not divide the split, backwards."""
    found = []
    for index, batch in dataset.batch(64).as_numpy_iterator():
        found += zip(index.tolist(), fake_log_p(batch["image"]).tolist(), strict=True)
    return found[::-1]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_evaluator_scores_every_image_of_digits_once(digits, split):
    metrics, outputs = evaluator("digits", split).evaluate(compute_metrics=True, score_fn=score)
    found = metrics.result()["digits"]
    images = digits.load_split(split)
    bits = -fake_log_p(images) / (64 * np.log(2))
    assert found["num_images"] == len(images) == digits.SPLIT_SIZES[split]
    np.testing.assert_allclose(found["bits_per_dim"], bits.mean(), rtol=1e-12)
    error = np.sqrt(((bits - bits.mean()) ** 2).sum() / (len(bits) - 1) / len(bits))
    np.testing.assert_allclose(found["standard_error"], error, rtol=1e-12)
    (scores,) = outputs["digits"].values()  # in the split's own order, each image's own
    np.testing.assert_array_equal(scores, fake_log_p(images))


def test_a_logger_writes_three_numbers_and_no_image(digits, tmp_path):
    import seqio

    made = evaluator("digits", "test", logger_cls=[seqio.JSONLogger], log_dir=str(tmp_path))
    for step in (1, 2):
        metrics, _ = made.evaluate(compute_metrics=True, step=step, score_fn=score)
    expected = metrics.result()["digits"]
    (file,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [{"step": step, **expected} for step in (1, 2)]
    assert file.stat().st_size < 500


def examples(num_images):
    return [{"image": np.zeros((2, 3, 1), np.uint8)}] * num_images


def compute(metric, scores, num_images, **options):
    made = metric.from_model_output(None, np.asarray(scores), None, **options)
    return made.actual_compute(examples(num_images), None)


def test_one_nat_per_image_by_hand(metric):
    # Six numbers per image: 6 log(2) nats are one bit per dim.
    found, rest = compute(metric, np.log(2) * np.array([-6.0, -18.0]), 2)
    assert found == {
        "bits_per_dim": pytest.approx(2.0),
        "standard_error": pytest.approx(1.0),
        "num_images": 2,
    }
    assert rest == {"targets": []}


def test_one_image_has_no_standard_error(metric):
    found, _ = compute(metric, [-1.0], 1)
    assert np.isnan(found["standard_error"])


def test_what_fills_up_a_batch_does_not_count(metric):
    index = np.array([[0, 0], [0, 1], [0, 1]])
    mask = np.array([1, 1, 0])
    masked, _ = compute(metric, [-1.0, -2.0, -2.0], 2, indices_2d=index, mask=mask)
    plain, _ = compute(metric, [-1.0, -2.0], 2)
    assert masked == plain


def test_batches_can_be_merged(metric):
    parts = [
        metric.from_model_output(
            None, np.array([value]), None, indices_2d=np.array([[0, place]]), mask=np.ones(1)
        )
        for place, value in enumerate((-1.0, -2.0))
    ]
    # As clu does it: arrays, then tuples of arrays.
    parts = [metric({key: (value,) for key, value in part.values.items()}) for part in parts]
    merged = metric.empty().merge(parts[0]).merge(parts[1])
    assert merged.actual_compute(examples(2), None) == compute(metric, [-1.0, -2.0], 2)


@pytest.mark.parametrize(
    ("scores", "num_images", "message"),
    [
        ([-1.0], 2, "got 1 scores for 2 images"),
        ([-1.0, -2.0], 1, "got 2 scores for 1 images"),
        ([-1.0, np.nan], 2, "must be finite, got nan for score 1"),
        ([-1.0, -np.inf], 2, "must be finite, got -inf"),
        ([[-1.0, -2.0]], 1, r"one log-likelihood in nats per image, \[N\], got \[1, 2\]"),
    ],
)
def test_scores_that_are_not_one_per_image_are_refused(metric, scores, num_images, message):
    with pytest.raises(ValueError, match=message):
        compute(metric, scores, num_images)


def test_an_image_scored_twice_is_refused(metric):
    index = np.array([[0, 0], [0, 0]])
    with pytest.raises(ValueError, match="2 scores are of 1 images"):
        compute(metric, [-1.0, -2.0], 2, indices_2d=index)


def test_an_evaluator_cannot_crop(digits):
    with pytest.raises(ValueError, match="must not change an image"):
        evaluator("digits", "test", sequence_length={"image": 4})
