from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from largebatch.diagnostics import EvalSums, generalization_gap


def draw_samples(generator: torch.Generator, num_samples: int, *, tokens: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, units and correct units of samples whose tokens share a difficulty, and whose length matters to it."""
    size = (num_samples,)
    units = torch.randint(1, 30, size, generator=generator) if tokens else torch.ones(size, dtype=torch.int64)
    difficulty = torch.rand(size, generator=generator, dtype=torch.float64)
    loss = units * (0.5 + difficulty + 0.02 * units)
    correct = torch.minimum(units, (units * (1 - difficulty)).round().long())
    return loss, units, correct


def test_closed_form_without_tokens_is_mean_and_standard_error_of_the_mean() -> None:
    losses, correct = [1.0, 2.0, 4.0, 9.0], [1, 1, 1, 0]
    sums = EvalSums.from_batch(torch.tensor(losses), torch.ones(4, dtype=torch.int64), torch.tensor(correct))
    assert sums.mean_loss == 4.0
    assert sums.loss_stderr == pytest.approx(np.std(losses, ddof=1) / 2, rel=1e-14)
    assert sums.accuracy == 0.75
    assert sums.accuracy_stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3), rel=1e-14)  # p (1 - p) / (n - 1)


def test_closed_form_with_unequal_tokens() -> None:
    # l = (2, 4), u = (1, 3): m = 6/4, residuals l - m u = (0.5, -0.5), var = 2/1 * 0.5 / 16.
    # c = (1, 1): a = 2/4, residuals (0.5, -0.5) as well.
    sums = EvalSums.from_batch(torch.tensor([2.0, 4.0]), torch.tensor([1, 3]), torch.tensor([1, 1]))
    assert (sums.mean_loss, sums.accuracy) == (1.5, 0.5)
    assert sums.loss_stderr == 0.25
    assert sums.accuracy_stderr == 0.25


def test_a_loss_proportional_to_the_units_has_no_error() -> None:
    units = torch.tensor([1, 5, 20])
    sums = EvalSums.from_batch(0.1 * units.double(), units, units)
    assert sums.mean_loss == pytest.approx(0.1, rel=1e-14)
    assert sums.loss_stderr < 1e-7  # what cancellation of float64 leaves: some sqrt(2^-53)
    assert sums.accuracy == 1.0
    assert sums.accuracy_stderr == 0.0


@pytest.mark.parametrize("tokens", [False, True])
def test_standard_errors_match_the_spread_over_resamples(tokens: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    num_resamples, num_samples = 2000, 100
    sums = [EvalSums.from_batch(*draw_samples(generator, num_samples, tokens=tokens)) for _ in range(2 * num_resamples)]
    gaps = [generalization_gap(train, validation) for train, validation in zip(sums[::2], sums[1::2], strict=True)]
    # The spread over R resamples is known to 1/sqrt(2R): 1.1% for means, 1.6% for gaps. The delta method has a bias of
    # order 1/n = 1%. Together below 6%; leaving out the term in l u is wrong by a factor of two.
    for values, stderrs in (
        ([s.mean_loss for s in sums], [s.loss_stderr for s in sums]),
        ([s.accuracy for s in sums], [s.accuracy_stderr for s in sums]),
        ([gap.loss for gap in gaps], [gap.loss_stderr for gap in gaps]),
        ([gap.accuracy for gap in gaps], [gap.accuracy_stderr for gap in gaps]),
    ):
        claimed = math.sqrt(np.mean(np.square(stderrs)))
        assert claimed == pytest.approx(np.std(values, ddof=1), rel=0.06)


@pytest.mark.parametrize("with_correct", [False, True])
def test_sums_of_shards_are_the_sums_of_the_whole(with_correct: bool) -> None:
    loss, units, correct = draw_samples(torch.Generator().manual_seed(0), 101, tokens=True)

    def sums_of(part: slice) -> EvalSums:
        return EvalSums.from_batch(loss[part], units[part], correct[part] if with_correct else None)

    whole = sums_of(slice(None))
    shards = [sums_of(slice(0, 60)), sums_of(slice(60, 61)), sums_of(slice(61, 61)), sums_of(slice(61, None))]
    by_addition = sum(shards, EvalSums())
    by_all_reduce = EvalSums.from_tensor(torch.stack([shard.to_tensor() for shard in [EvalSums(), *shards]]).sum(dim=0))
    for total in (by_addition, by_all_reduce):
        assert (total.num_samples, total.units, total.correct) == (101, whole.units, whole.correct)
        torch.testing.assert_close(total.to_tensor(), whole.to_tensor(), rtol=1e-13, atol=0, equal_nan=True)
        assert total.loss_stderr == pytest.approx(whole.loss_stderr, rel=1e-10)
    assert (whole.accuracy is None) == (not with_correct)


def test_tensor_form_is_the_eleven_sums_and_turns_back() -> None:
    sums = EvalSums.from_batch(torch.tensor([2.0, 4.0]), torch.tensor([1, 3]), torch.tensor([1, 2]))
    assert sums.to_tensor().tolist() == [2, 4, 6, 20, 14, 10, 3, 5, 7, 4, 10]
    assert sums.to_tensor().dtype == torch.float64
    assert EvalSums.from_tensor(sums.to_tensor()) == sums
    without = EvalSums.from_batch(torch.tensor([2.0]), torch.tensor([1]))
    assert EvalSums.from_tensor(without.to_tensor()) == without
    assert (without.accuracy, without.accuracy_stderr) == (None, None)


def test_float32_losses_are_summed_in_float64() -> None:
    # 2^24 + 1 is not a float32: a float32 sum would lose the second sample.
    sums = EvalSums.from_batch(torch.tensor([2.0**24, 1.0]), torch.ones(2))
    assert sums.loss == 2.0**24 + 1


def test_a_sum_that_is_not_finite_stays_visible() -> None:
    sums = EvalSums.from_batch(torch.tensor([1.0, math.nan]), torch.ones(2), torch.ones(2)) + EvalSums()
    assert math.isnan(sums.mean_loss)
    assert math.isnan(sums.loss_stderr)
    assert sums.accuracy == 1.0


def test_one_sample_has_a_mean_and_no_known_error() -> None:
    sums = EvalSums.from_batch(torch.tensor([3.0]), torch.tensor([2]), torch.tensor([1]))
    assert (sums.mean_loss, sums.accuracy) == (1.5, 0.5)
    assert math.isnan(sums.loss_stderr)
    assert math.isnan(sums.accuracy_stderr)


def test_gap_is_positive_when_validation_is_worse_and_variances_add() -> None:
    ones = torch.ones(2, dtype=torch.int64)
    train = EvalSums.from_batch(torch.tensor([0.0, 6.0]), ones, torch.tensor([1, 1]))  # 3 +- 3
    validation = EvalSums.from_batch(torch.tensor([1.0, 9.0]), ones, torch.tensor([1, 0]))  # 5 +- 4
    gap = generalization_gap(train, validation)
    assert (gap.loss, gap.loss_stderr) == (2.0, 5.0)
    assert (gap.accuracy, gap.accuracy_stderr) == (0.5, 0.5)


def test_gap_of_a_regression_has_no_accuracy() -> None:
    sums = EvalSums.from_batch(torch.tensor([1.0, 2.0]), torch.ones(2))
    gap = generalization_gap(sums, sums)
    assert (gap.loss, gap.accuracy, gap.accuracy_stderr) == (0.0, None, None)


def test_gap_between_different_losses_is_refused() -> None:
    with_accuracy = EvalSums.from_batch(torch.tensor([1.0]), torch.ones(1), torch.ones(1))
    without = EvalSums.from_batch(torch.tensor([1.0]), torch.ones(1))
    with pytest.raises(ValueError, match="same loss object"):
        generalization_gap(with_accuracy, without)


def test_mean_of_nothing_is_refused() -> None:
    for empty in (EvalSums(), EvalSums.from_batch(torch.zeros(3), torch.zeros(3), torch.zeros(3))):
        with pytest.raises(ValueError, match=f"{empty.num_samples} samples with 0 units"):
            _ = empty.mean_loss
        with pytest.raises(ValueError, match="0 units"):
            _ = empty.accuracy


@pytest.mark.parametrize(
    ("loss", "units"),
    [(torch.tensor(1.0), torch.tensor(1)), (torch.zeros(3), torch.zeros(2)), (torch.zeros(2, 2),) * 2],
)
def test_anything_but_one_number_per_sample_is_refused(loss: Tensor, units: Tensor) -> None:
    with pytest.raises(ValueError, match="one number per sample"):
        EvalSums.from_batch(loss, units)
