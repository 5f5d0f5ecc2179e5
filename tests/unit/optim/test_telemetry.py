"""Trust ratios and relative updates are those of the step that was taken."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from largebatch.optim import LAMB, LARS, TensorStep, summary_of, tensor_steps, weights_of
from largebatch.optim.trust_ratio import TrustRatio
from tests.unit.optim.forms import CLASSES, FORMS, TUNED, every_form

SHAPES = [(4, 3), (5,), (2, 2, 2)]


def make(name: str, form: str) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in (*SHAPES, *SHAPES)]
    with torch.no_grad():
        params[1].zero_()
    groups = [
        {"params": params[:3]},
        {"params": params[3:5], "weight_decay": 0.0},
        {"params": params[5:], "adapts": False},
    ]
    return params, CLASSES[name](groups, lr=0.2, **{**TUNED[name], **FORMS[name, form]})


@every_form
def test_ratios_are_those_of_the_step_in_every_form(name, form, monkeypatch):
    params, optimizer = make(name, form)
    for group in optimizer.param_groups:
        group["foreach"] = False
    seen: list[torch.Tensor] = []  # what the plain loop asks for, in the order of the tensors
    of_tensors = TrustRatio.of_tensors

    def spy(*args: Any) -> torch.Tensor:
        seen.append(of_tensors(*args))
        return seen[-1]

    monkeypatch.setattr(TrustRatio, "of_tensors", spy)
    for step in range(3):
        for number, param in enumerate(params):
            param.grad = torch.randn(param.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
            if number == 2:
                param.grad.zero_()
        before = weights_of(optimizer)
        seen.clear()
        optimizer.step()
        of_the_step = [float(one) for one in seen]
        steps = tensor_steps(optimizer, before)
        ratios = [steps[param].ratio for param in params]
        assert [ratio for ratio in ratios if ratio is not None] == pytest.approx(of_the_step, rel=1e-12)
        assert ratios[5] is None
        for param in params:
            change, size = (param.detach() - before[param]).norm().item(), before[param].norm().item()
            expected = change / size if size else (math.inf if change else math.nan)
            assert steps[param].update_to_weight == pytest.approx(expected, rel=1e-12, nan_ok=True)


def one_step(optimizer_class: Any, weight: list[float], grad: list[float], **options: Any) -> TensorStep:
    param = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
    param.grad = torch.tensor(grad, dtype=torch.float64)
    optimizer = optimizer_class([param], **options)
    before = weights_of(optimizer)
    optimizer.step()
    return tensor_steps(optimizer, before)[param]


def test_by_hand():
    lars = one_step(LARS, [3.0, 4.0], [0.0, 2.0], lr=1.0, weight_decay=0.0, trust_coefficient=0.1)
    assert lars == TensorStep(pytest.approx(0.1), pytest.approx(0.25), is_clipped=False, is_fallback=False)
    clipped = one_step(LARS, [3.0, 4.0], [0.0, 2.0], lr=0.1, weight_decay=0.0, trust_coefficient=0.1, clip=True)
    assert (clipped.ratio, clipped.is_clipped) == (1.0, True)
    lamb = one_step(LAMB, [3.0, 4.0], [0.0, 2.0], lr=0.1, eps=1e-30, weight_decay=0.0)
    assert (lamb.update_to_weight, lamb.ratio) == (pytest.approx(0.1), pytest.approx(5.0))
    bounded = one_step(LAMB, [3.0, 4.0], [1.0, 2.0], lr=0.1, weight_decay=0.0, norm_bounds=(0.0, 2.0))
    assert bounded.is_clipped
    assert bounded.update_to_weight == pytest.approx(0.1 * 2 / 5)


def test_a_zero_norm_is_told_as_a_fallback():
    for optimizer_class in (LARS, LAMB):
        new = one_step(optimizer_class, [0.0, 0.0], [0.0, 2.0], lr=0.1)
        assert (new.ratio, new.is_fallback, new.update_to_weight) == (1.0, True, math.inf)


def test_of_other_optimizers_only_the_relative_update_is_known():
    step = one_step(torch.optim.SGD, [3.0, 4.0], [0.0, 2.0], lr=0.5)
    assert step == TensorStep(pytest.approx(0.2))


def test_the_summary_counts_adapting_tensors_and_leaves_infinities_out():
    steps = [
        TensorStep(0.1, 2.0),
        TensorStep(0.3, 1.0, is_clipped=True),
        TensorStep(math.inf, 1.0, is_fallback=True),
        TensorStep(0.2),
    ]
    row = summary_of(steps)
    assert [row[f"update_to_weight/{name}"] for name in ("min", "median", "max")] == pytest.approx([0.1, 0.2, 0.3])
    assert [row[f"trust_ratio/{name}"] for name in ("min", "median", "max")] == [1.0, 1.0, 2.0]
    assert row["trust_ratio/clipped_share"] == row["trust_ratio/fallback_share"] == pytest.approx(1 / 3)
    assert not any(key.startswith("trust") for key in summary_of([TensorStep(0.2)]))
    assert summary_of([]) == {}
