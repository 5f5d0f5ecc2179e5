from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.losses import CrossEntropy, InfoNCE, MixedLabels, ModuleLoss, NextToken, units_are_fixed

N, C = 12, 5
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(N, C, generator=GENERATOR, dtype=torch.float64)
FIRST, SECOND = (torch.randint(0, C, (N,), generator=GENERATOR) for _ in range(2))
SHARE = torch.rand(N, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.stack([FIRST.double(), SECOND.double(), SHARE], dim=1)
WEIGHT = [0.5, 1.0, 2.0, 0.25, 3.0]


def shares_of_classes() -> Tensor:
    return SHARE[:, None] * F.one_hot(FIRST, C) + (1 - SHARE)[:, None] * F.one_hot(SECOND, C)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_mean_is_torchs_of_mixed_probabilities(smoothing: float) -> None:
    loss = MixedLabels(CrossEntropy(label_smoothing=smoothing))
    mean = loss.loss_per_sample(LOGITS, TARGETS).sum() / loss.units_per_sample(TARGETS).sum()
    expected = F.cross_entropy(LOGITS, shares_of_classes(), label_smoothing=smoothing)
    torch.testing.assert_close(mean, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(weight=WEIGHT, ignore_index=2),
        ModuleLoss(nn.CrossEntropyLoss(torch.tensor(WEIGHT), ignore_index=2)),
    ],
)
def test_class_weights_and_masked_labels_count_by_the_share_of_their_label(loss: Any) -> None:
    assert (FIRST == 2).any()
    assert (SECOND == 2).any()
    mixed, weight = MixedLabels(loss), torch.tensor(WEIGHT, dtype=torch.float64)
    logs = LOGITS.log_softmax(dim=1)
    numerator, denominator = 0.0, 0.0
    for row in range(N):
        for label, share in ((FIRST[row], SHARE[row]), (SECOND[row], 1 - SHARE[row])):
            if label != 2:
                numerator -= float(share * weight[label] * logs[row, label])
                denominator += float(share * weight[label])
    assert float(mixed.loss_per_sample(LOGITS, TARGETS).sum()) == pytest.approx(numerator, rel=1e-12)
    assert float(mixed.units_per_sample(TARGETS).sum()) == pytest.approx(denominator, rel=1e-12)
    assert not units_are_fixed(mixed, object())


def test_binary_losses_of_several_labels_are_those_of_mixed_labels() -> None:
    several = (torch.rand(2, N, C, generator=GENERATOR) < 0.4).double()
    loss = MixedLabels(ModuleLoss(nn.BCEWithLogitsLoss()))
    targets = torch.cat([several[0], several[1], SHARE[:, None]], dim=1)
    mean = loss.loss_per_sample(LOGITS, targets).sum() / loss.units_per_sample(targets).sum()
    labels = SHARE[:, None] * several[0] + (1 - SHARE[:, None]) * several[1]
    torch.testing.assert_close(mean, F.binary_cross_entropy_with_logits(LOGITS, labels), rtol=1e-14, atol=0)


def test_units_that_are_fixed_are_whole_whatever_the_share() -> None:
    shares = torch.rand(10_000, generator=GENERATOR, dtype=torch.float64)
    targets = torch.stack([torch.zeros(10_000), torch.ones(10_000), shares], dim=1)
    loss = MixedLabels(CrossEntropy(ignore_index=None))
    assert loss.fixed_units
    assert bool((loss.units_per_sample(targets) == 1).all())


def test_a_prediction_is_correct_by_the_share_of_its_label() -> None:
    targets = torch.tensor([[1.0, 2.0, 0.75], [0.0, 2.0, 0.75], [0.0, 1.0, 0.75]], dtype=torch.float64)
    logits = torch.tensor([[0.0, 0.0, 1.0]] * 3)
    correct = MixedLabels(CrossEntropy()).correct_per_sample(logits, targets)
    assert correct is not None
    assert correct.tolist() == [0.25, 0.25, 0.0]


@pytest.mark.parametrize(("loss", "reason"), [(InfoNCE(), "compares the samples"), (NextToken(), "labels of tokens")])
def test_losses_without_two_labels_are_refused(loss: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        MixedLabels(loss)


def test_a_loss_without_accuracy_has_no_classes_to_mix() -> None:
    with pytest.raises(ValueError, match="no classes"):
        MixedLabels(ModuleLoss(nn.MSELoss())).examine(LOGITS, torch.cat([LOGITS, LOGITS, SHARE[:, None]], dim=1))
