"""Runs at two batch sizes are compared where they are comparable, over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy

from largebatch.diagnostics import Evaluations, large_batch_gap
from largebatch.diagnostics.gap.large_batch_gap import merge_reruns, welch_difference


def run(samples, batch, train_loss, val_loss, val_accuracy=None) -> Evaluations:
    samples = np.array(samples, dtype=float)
    accuracy = None if val_accuracy is None else np.array(val_accuracy, dtype=float)
    return Evaluations(samples, samples / batch, np.array(train_loss, float), np.array(val_loss, float), accuracy)


# One sample counts in steps of 10: steps are a tenth of the samples here, a fortieth there.
SMALL = run([100, 200, 300, 400], 10, [1.0, 0.6, 0.2, 0.1], [1.0, 0.8, 0.6, 0.5], [0.5, 0.6, 0.7, 0.8])
LARGE = run([160, 400, 480], 40, [1.2, 0.8, 0.4], [1.4, 1.0, 0.9], [0.3, 0.5, 0.6])


def gap(match, small=SMALL, large=LARGE):
    return large_batch_gap([small], [large], match=match)


def test_at_equal_samples_the_last_that_both_have_counts():
    found = gap("samples")
    assert found.at == 400
    assert found.loss.value == pytest.approx(1.0 - 0.5)
    assert found.accuracy.value == pytest.approx(0.8 - 0.5)
    assert math.isnan(found.loss.low), "one run each does not tell its error"


def test_at_equal_steps_values_between_evaluations_are_interpolated():
    found = gap("steps")
    assert found.at == 12  # 480 samples of the large batch, 120 of the small
    assert found.loss.value == pytest.approx(0.9 - (1.0 - 0.2 * 0.2))
    assert found.accuracy.value == pytest.approx((0.5 + 0.2 * 0.1) - 0.6)


def test_at_equal_training_loss_the_lowest_that_both_reach_counts():
    found = gap("train_loss")
    assert found.at == pytest.approx(0.4)  # the small batch is there in the middle between 200 and 300
    assert found.loss.value == pytest.approx(0.9 - 0.7)
    assert found.accuracy.value == pytest.approx(0.65 - 0.6)


def test_a_training_loss_that_rises_in_between_is_reached_when_it_is_first_passed():
    restless = run([100, 200, 300, 400], 10, [1.0, 0.5, 3.0, 0.3], [1.0, 0.8, 9.0, 0.4])
    at_half = run([100, 200], 40, [2.0, 0.5], [1.0, 1.0])
    assert gap("train_loss", restless, at_half).loss.value == pytest.approx(1.0 - 0.8)
    below = run([100, 200], 40, [2.0, 0.4], [1.0, 1.0])  # between the second and the fourth evaluation
    assert gap("train_loss", restless, below).loss.value == pytest.approx(1.0 - (9.0 + 0.5 * (0.4 - 9.0)))


def test_where_runs_do_not_overlap_there_is_a_reason_and_no_number():
    late = run([1000, 1200], 40, [0.05, 0.01], [0.9, 0.9])
    found = gap("samples", large=late)
    assert (found.at, found.loss, found.accuracy) == (None, None, None)
    assert found.reason.startswith("one run ends at 400 samples, another is first evaluated at 1,000")
    found = gap("train_loss", large=late)
    assert found.at is None
    assert "below a training loss of 0.05 at its first evaluation, and another never gets below 0.1" in found.reason
    assert gap("steps", large=late).at == 30


def test_seeds_are_replicates_with_welchs_interval():
    generator = np.random.default_rng(0)
    first, second = generator.normal(0, 1, 4), generator.normal(1, 3, 6)
    found = welch_difference(first.tolist(), second.tolist())
    theirs = scipy.stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    for few, why in (([1.0, 2.0], "two seeds"), ([1.0, 1.0, 1.0], "no seed differs")):
        one = welch_difference(few, [2.0, 2.0, 2.0])
        assert math.isnan(one.low), why
        assert math.isnan(one.high), why
    small, large = ([run([1, 2], size, [2.0, 1.0], [0.0, value]) for value in values] for size, values in
                    ((1, first), (1, second)))  # fmt: skip
    for match in ("samples", "steps", "train_loss"):
        seen = large_batch_gap(small, large, match=match)
        assert (seen.loss.value, seen.loss.low, seen.loss.high) == pytest.approx((found.value, found.low, found.high))
        assert seen.accuracy is None


def test_of_accuracies_a_fall_is_positive_and_its_interval_is_in_order():
    small = [run([1, 2], 1, [2, 1], [0, 0], [0, value]) for value in (0.8, 0.85, 0.9)]
    large = [run([1, 2], 2, [2, 1], [0, 0], [0, value]) for value in (0.5, 0.6, 0.7)]
    fall = large_batch_gap(small, large, match="samples").accuracy
    assert fall.value == pytest.approx(0.25)
    assert fall.low < fall.value < fall.high
    far = [run([1, 2], 2, [2, 1], [0, 0], [0, value]) for value in (0.0, 0.1, 0.9)]
    assert large_batch_gap(small, far, match="samples").accuracy.high == 1, "accuracies differ by 1 at most"


def test_runs_of_one_seed_are_their_mean_where_they_reach_furthest():
    one, other = (run([1, 2], 1, [2, 1], [0, value], [0.5, value / 10]) for value in (4.0, 6.0))
    broken_off = run([1], 1, [9], [9], [0.0])
    merged, count = merge_reruns([one, broken_off, other])
    assert count == 2
    assert merged.val_loss.tolist() == [0, 5]
    assert merged.val_accuracy.tolist() == pytest.approx([0.5, 0.5])
    without = run([1, 2], 1, [2, 1], [0, 1])
    assert merge_reruns([one, without])[0].val_accuracy is None


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="choose one of samples, steps, train_loss"):
        gap("epochs")
    with pytest.raises(ValueError, match="0 small-batch and 1 large-batch runs"):
        large_batch_gap([], [LARGE], match="samples")
    with pytest.raises(ValueError, match="both need one with evaluations"):
        gap("samples", large=run([], 40, [], []))
