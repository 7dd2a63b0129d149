"""Means over images: batches in their order, padding cut off, and errors of the mean."""

import math

import numpy as np
import pytest

from idode_gin import checks
from idode_gin.runs import means

BPD = np.array([1.0, 2.0, 6.0])
ERROR = math.sqrt((4 + 1 + 9) / 2 / 3)


def test_a_row_has_means_and_the_error_of_bits_per_dim():
    found = means.row({"bpd": BPD, "prior": np.array([0.5, 0.5, 2.0])}, 7)
    expected = {"eval/bpd": 3.0, "eval/prior": 1.0, "eval/bpd_stderr": ERROR, "eval/images": 3}
    assert found == pytest.approx(expected)
    assert means.row({"bpd": BPD[:1]}, 7) == {"eval/bpd": 1.0, "eval/images": 1}


def test_a_mean_that_is_not_finite_raises_beside_others_that_are():
    values = {"bpd": BPD, "prior": np.array([0.5, np.nan, 2.0])}
    with pytest.raises(checks.NonFiniteError, match="step 7 is not finite"):
        means.row(values, 7)


def test_summaries_are_of_all_values_whatever_the_shape():
    expected = {"mean": 3.0, "stderr": pytest.approx(ERROR)}
    assert means.summarize(BPD) == means.summarize(BPD[:, None].astype(np.float32)) == expected
    assert means.summarize(BPD[:1]) == {"mean": 1.0, "stderr": None}


class Lazy:
    """An array that is being computed."""

    def __init__(self, waited):
        self.block_until_ready = lambda: waited.append(self)


@pytest.mark.parametrize("ended_by", ["a request", "the caller", "an error"])
def test_batches_in_flight_are_waited_for(ended_by):
    """XLA crashes a process that ends while it computes on a CPU."""
    waited, started = [], []

    def evaluate(batch):
        if ended_by == "an error" and len(started) == means.LOOK_AHEAD:
            raise ZeroDivisionError
        started.append(Lazy(waited))
        return {"bpd": started[-1]}

    batches = ({"image": np.zeros(1)} for _ in range(means.LOOK_AHEAD + 2))
    asked = (lambda: len(started) == means.LOOK_AHEAD) if ended_by == "a request" else bool
    landed = means.landed(evaluate, batches, asked)
    if ended_by == "the caller":
        next(landed)
        landed.close()
        assert waited[-means.LOOK_AHEAD :] == started[1:]
        return
    with pytest.raises((means.AskedToStop, ZeroDivisionError)):
        next(landed)
    assert waited == started
    assert len(started) == means.LOOK_AHEAD


@pytest.mark.parametrize("stop_at", [None, 0, 2])
def test_values_of_all_batches_in_order_without_padding(stop_at):
    """Five images in batches of two; or nothing, if asked to stop before a batch."""
    batches = [{"image": np.array(pair)} for pair in ((1, 2), (3, 4), (5, 0))]
    asked = iter(range(10))

    def evaluate(batch):
        return {"double": 2 * batch["image"], "bpd": batch["image"]}

    found = means.over_batches(evaluate, iter(batches), 5, lambda: next(asked) == stop_at)
    if stop_at is not None:
        assert found is None
        return
    assert list(found) == ["bpd", "double"]
    np.testing.assert_array_equal(found["bpd"], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(found["double"], [2, 4, 6, 8, 10])
    assert found["bpd"].dtype == np.float64
