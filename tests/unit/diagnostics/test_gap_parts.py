"""The parts of a gap add up, are 0 where there is nothing to change, and their intervals cover."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from largebatch.data import ArrayDataset, NoisyLabels
from largebatch.diagnostics import GapParts, Interval, PerSample, decompose_gap
from largebatch.diagnostics import intervals as bootstrap
from largebatch.diagnostics.intervals import percentile_interval, resampled_ratios


def draw(generator: np.random.Generator, count: int, *, tokens: bool, shift: float = 0.0) -> PerSample:
    units = generator.integers(1, 20, count).astype(float) if tokens else np.ones(count)
    loss = units * (1 + shift + generator.exponential(size=count) + 0.05 * units)
    return PerSample(loss, units, np.minimum(units, np.floor(units * generator.random(count) * 1.5)))


def chain(tokens: bool) -> tuple[PerSample, list[tuple[str, PerSample | None]], PerSample]:
    generator = np.random.default_rng(0)
    first = draw(generator, 40, tokens=tokens)
    others = [draw(generator, 40, tokens=tokens) for _ in range(2)]
    same_units = [PerSample(one.loss, first.units, np.minimum(one.correct, first.units)) for one in others]
    changes = [("augmentation", same_units[0]), ("train mode", None), ("stale statistics", same_units[1])]
    return first, changes, draw(generator, 30, tokens=tokens)


def decompose(first, changes, validation, **options) -> GapParts:
    return decompose_gap(first, changes, validation, **{"num_resamples": 200, "seed": 7, **options})


@pytest.mark.parametrize("tokens", [False, True])
def test_parts_add_up_to_the_naive_gap_and_each_is_the_later_condition_minus_the_earlier(tokens):
    first, changes, validation = chain(tokens)
    found = decompose(first, changes, validation)
    augmentation, train_mode, stale, generalization = found.parts
    assert train_mode.loss is None
    assert train_mode.accuracy is None
    plain, last = changes[0][1], changes[2][1]
    assert augmentation.loss.value == pytest.approx(plain.mean_loss - first.mean_loss, rel=1e-12)
    assert stale.accuracy.value == pytest.approx(plain.accuracy - last.accuracy, rel=1e-12)
    assert generalization.loss.value == pytest.approx(validation.mean_loss - last.mean_loss, rel=1e-12)
    losses = [part.loss.value for part in found.parts if part.loss is not None]
    falls = [part.accuracy.value for part in found.parts if part.accuracy is not None]
    assert math.fsum(losses) == pytest.approx(validation.mean_loss - first.mean_loss, rel=1e-12)
    assert math.fsum(falls) == pytest.approx(first.accuracy - validation.accuracy, rel=1e-12)
    assert found.naive.loss.value == pytest.approx(math.fsum(losses), rel=1e-12)
    assert found.generalization_gap.loss == generalization.loss
    for part in (augmentation, stale, generalization, found.naive):
        for one in (part.loss, part.accuracy):
            assert one.low < one.value < one.high


def test_the_gap_of_an_evaluation_ends_where_it_was_told_to():
    first, changes, validation = chain(False)
    found = decompose(first, changes, validation, evaluated="augmentation")
    assert found.generalization_gap.loss.value == pytest.approx(validation.mean_loss - changes[0][1].mean_loss)


def test_what_two_conditions_have_in_common_is_not_part_of_the_error():
    first, _, validation = chain(False)
    shifted = PerSample(first.loss + 0.25, first.units, first.correct)
    (part, generalization) = decompose(first, [("augmentation", shifted)], validation).parts
    assert (part.loss.low, part.loss.high) == pytest.approx((0.25, 0.25), abs=1e-12)
    assert part.accuracy is None, "the same answers, not merely as many right ones"
    assert generalization.loss.high - generalization.loss.low > 0.5


def test_validation_samples_are_drawn_on_their_own_even_if_they_are_alike():
    first, _, _ = chain(False)
    twin = PerSample(first.loss.copy(), first.units, first.correct.copy())
    (generalization,) = decompose(first, [], twin).parts
    assert generalization.loss.value == 0.0
    for one in (generalization.loss, generalization.accuracy):
        assert one.high - one.low > 0.2


def test_intervals_are_those_of_a_bootstrap_written_out(monkeypatch):
    first, _, _ = chain(True)
    ratios = resampled_ratios(first.loss[:, None], first.units[:, None], num_resamples=50, seed=3)
    generator = np.random.Generator(np.random.PCG64(3))
    written_out = [
        first.loss[rows].sum() / first.units[rows].sum() for rows in (generator.integers(0, 40, 40) for _ in range(50))
    ]
    assert ratios[:, 0] == pytest.approx(written_out, rel=1e-12)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 7 * 40)  # pieces change memory, not numbers
    again, other = (
        resampled_ratios(first.loss[:, None], first.units[:, None], num_resamples=50, seed=seed) for seed in (3, 4)
    )
    assert again == pytest.approx(ratios)
    assert other != pytest.approx(ratios)


def test_a_resample_without_units_says_nothing():
    ratios = resampled_ratios(np.array([[2.0], [0.0]]), np.array([[1.0], [0.0]]), num_resamples=50, seed=0)
    assert np.isnan(ratios).any()
    assert percentile_interval(2.0, ratios[:, 0]) == Interval(2.0, 2.0, 2.0)


NUM_REPLICATIONS = 400  # a coverage of 95 % is then known to 1.1 %


def covers(one: Interval, truth: float) -> bool:
    return one.low <= truth <= one.high


@pytest.mark.parametrize("tokens", [False, True])
def test_intervals_cover_the_truth_in_93_to_97_per_cent_of_replications(tokens):
    """Augmentation of known mean effect, and validation from the same distribution: a gap of 0."""
    generator = np.random.default_rng(1)
    hits = []
    for number in range(NUM_REPLICATIONS):
        plain = draw(generator, 120, tokens=tokens)
        effect = generator.normal(0.3, 1.0, size=120)  # of each unit
        augmented = PerSample(plain.loss + plain.units * effect, plain.units, plain.correct)
        validation = draw(generator, 120, tokens=tokens)
        found = decompose(augmented, [("augmentation", plain)], validation, num_resamples=200, seed=2 * number)
        removed, generalization = found.parts
        hits.append((covers(removed.loss, -0.3), covers(generalization.loss, 0.0), covers(found.naive.loss, -0.3)))
    for share in np.mean(hits, axis=0):
        assert 0.93 <= share <= 0.97


def test_planted_label_noise_is_recovered_in_93_to_97_per_cent_of_replications():
    """By a model that learned every label by heart, and by one that answers the right one whatever it was trained on.

    Of a share q of random labels among k classes q (1 - 1/k) are wrong: so much is training accuracy, with the noisy
    labels, above the accuracy on the same samples with their own labels, or below it.
    """
    num_classes, share = 5, 0.3
    truth = share * (1 - 1 / num_classes)
    labels = torch.arange(200) % num_classes
    clean = ArrayDataset(torch.zeros(200, 1), labels)
    ids, ones, hits = np.arange(200), np.ones(200), []
    for number in range(NUM_REPLICATIONS):
        noisy = NoisyLabels(clean, share, num_classes=num_classes, seed=number).fetch(ids)[1]
        wrong = (noisy != labels).double().numpy()
        all_right = PerSample(0 * ones, ones, ones)
        some_wrong = PerSample(wrong, ones, 1 - wrong)
        for first, own, expected in ((all_right, some_wrong, truth), (some_wrong, all_right, -truth)):
            part = decompose(first, [("label noise", own)], own, num_resamples=200, seed=2 * number).parts[0]
            hits.append(covers(part.accuracy, expected))
            assert part.loss.value == pytest.approx(part.accuracy.value, abs=1e-12)
    assert 0.93 <= np.mean(hits) <= 0.97


def test_regressions_have_no_accuracy():
    one = PerSample(np.array([1.0, 2.0]), np.ones(2), None)
    found = decompose(one, [], one)
    assert found.train_accuracy is None
    assert [part.accuracy for part in (*found.parts, found.naive)] == [None, None]


@pytest.mark.parametrize(
    ("first", "after", "validation", "said"),
    [
        (3, 2, 3, "Conditions of [3, 2] samples: all must use the same samples"),
        (1, 1, 1, "1 samples: a spread needs at least 2"),
    ],
)
def test_wrong_numbers_of_samples_are_refused(first, after, validation, said):
    made = [PerSample(np.ones(count), np.ones(count), None) for count in (first, after, validation)]
    with pytest.raises(ValueError, match=re.escape(said)):
        decompose(made[0], [("augmentation", made[1])], made[2])


def test_conditions_that_measure_different_things_are_refused():
    ones = np.ones(2)
    with pytest.raises(ValueError, match="the same loss"):
        decompose(PerSample(ones, ones, ones), [], PerSample(ones, ones, None))
    with pytest.raises(ValueError, match="0 units"):
        decompose(PerSample(ones, ones, None), [], PerSample(ones, 0 * ones, None))
    with pytest.raises(ValueError, match="row per sample"):
        resampled_ratios(ones, ones, num_resamples=1, seed=0)
