"""Losses as torch's users have them, as sums per sample: the mean is the one that they would have computed."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from largebatch.losses import CrossEntropy, as_loss

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 3, -100, 1, 2, 2])
NUMBERS = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))


def relative_error(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    each = ((outputs - targets) / (1 + targets)).abs().mean(dim=1)
    return each.mean() if reduction == "mean" else each


CASES = [
    (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0])), CLASSES),
    (F.cross_entropy, CLASSES),
    (partial(F.cross_entropy, label_smoothing=0.1), CLASSES),
    (partial(partial(F.cross_entropy, ignore_index=3), ignore_index=2), CLASSES.clamp(min=0)),
    (F.mse_loss, NUMBERS),
    (F.l1_loss, NUMBERS),
    (F.huber_loss, NUMBERS),
    (F.binary_cross_entropy_with_logits, NUMBERS),
    (relative_error, NUMBERS),
]


@pytest.mark.parametrize(("own", "targets"), CASES, ids=lambda one: getattr(one, "__name__", type(one).__name__))
def test_the_mean_over_units_is_the_mean_of_the_function(own: Any, targets: Tensor):
    loss = as_loss(own)
    loss.examine(LOGITS, targets)  # type: ignore[attr-defined]
    found = loss.loss_per_sample(LOGITS, targets).sum() / loss.units_per_sample(targets).sum()
    torch.testing.assert_close(found.double(), own(LOGITS, targets).double(), rtol=1e-6, atol=0)


def test_a_loss_of_ours_stays_what_it_is():
    own = CrossEntropy()
    assert as_loss(own) is own


@pytest.mark.parametrize("own", [lambda outputs, targets: (outputs - targets).mean(), max])
def test_one_number_per_batch_is_refused(own: Any):
    with pytest.raises(ValueError, match="losses of single samples are needed"):
        as_loss(own)
