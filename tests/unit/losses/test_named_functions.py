"""Losses that a config names as functions, or with lists as weights: what a torch user types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from largebatch.losses.function_loss import FunctionLoss
from largebatch.losses.module_loss import ModuleLoss
from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import prepare
from tests.unit.composing import compose_run

HERE = "tests.unit.losses.test_named_functions"


def focal(outputs: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return (1 - torch.exp(-losses)) ** gamma * losses


def reduced(outputs: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(outputs, targets, reduction=reduction)


def one_number(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


def a_pair(outputs: Tensor, targets: Tensor) -> Any:
    return F.cross_entropy(outputs, targets, reduction="none"), {}


def three(outputs: Tensor, targets: Tensor, teacher: Tensor) -> Tensor:
    return outputs


def prepared(*overrides: str) -> Any:
    return prepare(compose_run("model=linear", "data=synthetic", "loss=module", "batch.total=32", *overrides), {})


@pytest.mark.parametrize(
    ("overrides", "truth"),
    [
        ((f"loss._target_={HERE}.focal", "+loss.gamma=1.5"), lambda o, t: focal(o, t, 1.5).mean()),
        ((f"loss._target_={HERE}.reduced",), F.cross_entropy),
        (("loss._target_=torch.nn.functional.cross_entropy", "+loss.weight=[1,2,1,1,1,1,1,1,1,5]"),
         lambda o, t: F.cross_entropy(o, t, weight=torch.tensor([1.0, 2, 1, 1, 1, 1, 1, 1, 1, 5]))),
        (("loss._target_=torch.nn.CrossEntropyLoss", "+loss.weight=[1,2,1,1,1,1,1,1,1,5]"),
         lambda o, t: F.cross_entropy(o, t, weight=torch.tensor([1.0, 2, 1, 1, 1, 1, 1, 1, 1, 5]))),
    ],
)  # fmt: skip
def test_sums_over_units_are_the_functions_own_mean_however_the_samples_are_cut(overrides: Any, truth: Any):
    loss = prepared(*overrides).loss
    torch.manual_seed(2)
    outputs, targets = torch.randn(13, 10), torch.randint(0, 10, (13,))
    parts = list(zip(outputs.split(5), targets.split(5), strict=True))
    whole = sum(loss.loss_per_sample(*part).sum() for part in parts)
    units = sum(loss.units_per_sample(part).sum() for _, part in parts)
    torch.testing.assert_close(whole / units, truth(outputs, targets).to((whole / units).dtype), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one_number", "one_number with reduction='none' returned [] for"),
        ("a_pair", "a_pair with reduction='none' returned tuple for"),
        ("three", "a function that needs outputs, targets, teacher"),
    ],
)
def test_a_function_without_the_loss_of_each_sample_is_refused(name: str, message: str):
    with pytest.raises(ConfigError) as raised:
        prepared(f"loss._target_={HERE}.{name}")
    assert message in str(raised.value)


def test_an_argument_that_the_function_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"loss\.gama=2: .*Did you mean 'gamma'"):
        prepared(f"loss._target_={HERE}.focal", "+loss.gama=2")


def test_a_function_of_class_numbers_has_accuracy_metrics_and_mixed_labels():
    mixed = prepared(f"loss._target_={HERE}.focal", "metric=[top5,f1]", "data.augment.mixup=0.2").loss
    outputs, targets = torch.eye(10)[[3, 1, 4, 1]], torch.tensor([3, 1, 4, 5])
    assert mixed.of_one_label.correct_per_sample(outputs, targets).tolist() == [1, 1, 1, 0]
    given = torch.tensor([[3, 5, 0.25], [2, 1, 0.25], [4, 4, 0.5], [1, 5, 1.0]])
    assert mixed.correct_per_sample(outputs, given).tolist() == [0.25, 0.75, 1, 1]


@pytest.mark.parametrize(
    ("outputs", "targets", "correct"),
    [
        (torch.eye(3)[[0, 2]].unsqueeze(2).expand(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64), [4, 0]),
        (torch.ones(2, 1), torch.ones(2, dtype=torch.int64), None),  # one output: no classes to choose from
        (torch.ones(2), torch.ones(2, dtype=torch.int64), None),
        (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64), None),  # several labels at once
        (torch.ones(2, 3), torch.ones(2, 3), None),
    ],
)
def test_which_targets_of_a_function_are_class_numbers(outputs: Tensor, targets: Tensor, correct: list[int] | None):
    function = focal if correct else lambda o, t: o.square().reshape(len(t), -1).sum(1)
    loss = ModuleLoss(FunctionLoss(function))
    loss.examine(outputs, targets)
    found = loss.correct_per_sample(outputs, targets)
    assert (None if found is None else found.tolist()) == correct
    assert correct is None or loss.counted_per_sample(targets).tolist() == [4, 4]
