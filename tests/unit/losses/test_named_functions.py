"""Losses that a config names as functions, or with lists as weights: what a torch user types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

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
