"""Sharpness-aware steps are those of a loop by hand, on any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.random_keys import stream_key
from largebatch.data import random_classification
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import micro_batch_key
from largebatch.gradient.sharpness_aware import SharpnessAware
from largebatch.losses import CrossEntropy
from largebatch.optim import LARS
from largebatch.training.guard import Guard
from largebatch.training.loop import Observer, Run, train
from largebatch.training.step_report import StepReport
from tests.multiprocess.counting import count_collectives
from tests.multiprocess.made_run import made_run

pytestmark = pytest.mark.quick

SAMPLES, BATCH, MICRO, STEPS = 50, 23, 3, 4  # the last micro-batch has two samples
EACH, ALL = SharpnessAware(0.2), SharpnessAware(0.2, "global")


class Net(nn.Module):
    """A shared weight, a frozen layer, batch norm, dropout, a count of passes, and a gradient that may be spoilt."""

    def __init__(self, spoils: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm, self.frozen, self.drop = nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Dropout(0.3)
        self.body.weight = self.stem.weight
        self.frozen.requires_grad_(False)
        self.spoils = spoils
        self.head.bias.register_hook(lambda grad: grad * float("nan") if self.spoils else None)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.frozen(self.body(self.stem(inputs).tanh()))
        return self.head(self.drop(self.norm(hidden)).relu())


@dataclass(frozen=True)
class Case:
    """How a step climbs, and what else it does."""

    how: SharpnessAware
    lars: bool = False
    clip: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "each": Case(EACH, clip=0.05),
    "each, LARS": Case(EACH, lars=True),
    "each, adaptive": Case(SharpnessAware(0.5, adaptive=True)),
    "all": Case(ALL, clip=0.05),
    "all, LARS, adaptive": Case(SharpnessAware(0.5, "global", adaptive=True), lars=True),
    "all, summed in order": Case(ALL, options={"ordered": True}),
    "each, computed twice": Case(EACH, options={"recompute_every": 2}),
}


def optimizer_of(case: Case, model: nn.Module) -> torch.optim.Optimizer:
    trained = [one for one in model.parameters() if one.requires_grad]
    if case.lars:
        return LARS(trained, lr=1.0, momentum=0.9)
    return torch.optim.SGD(trained, lr=1.0, momentum=0.9, weight_decay=1e-3)


class Losses(Observer):
    def __init__(self) -> None:
        self.values: list[float] = []

    def after_step(self, run: Run, report: StepReport) -> None:
        self.values.append(report.mean_loss)


def trained(name: str) -> dict[str, Any]:
    case = CASES[name]
    with Runtime.open(precision="fp64") as runtime:
        model, data, losses = Net(), random_classification(SAMPLES, 3, (6,), "train"), Losses()
        plan = BatchPlan.pinned(global_batch_size=BATCH, world_size=runtime.world_size, micro_batch_size=MICRO)
        run = made_run(
            runtime, model, CrossEntropy(), optimizer_of(case, model), plan, data, lambda _: 0.3, STEPS, log_every=1,
            clip_norm=case.clip, observers=[losses], sharpness_aware=case.how, **case.options,
        )  # fmt: skip
        assert train(run) == "finished"
        state = {key: one.detach().numpy().copy() for key, one in run.module.state_dict().items()}
        return {"state": state, "losses": losses.values}


def by_hand(name: str) -> dict[str, Any]:
    """The definition: one process, one pass after the other, every tensor by its name."""
    case, model, data = CASES[name], Net().double().train(), random_classification(SAMPLES, 3, (6,), "train")
    optimizer, order, losses = optimizer_of(case, model), SampleOrder(SAMPLES, 0), []
    weights = {key: one for key, one in model.named_parameters() if one.requires_grad}
    for group in optimizer.param_groups:
        group["lr"] = 0.3

    def gradient(parts: list[tuple[int, Tensor]], key: int) -> tuple[float, list[Tensor]]:
        total = torch.zeros((), dtype=torch.float64)
        for index, ids in parts:
            torch.manual_seed(micro_batch_key(key, index))
            total = total + F.cross_entropy(model(data.inputs[ids].double()), data.targets[ids], reduction="sum")
        return total.item(), list(torch.autograd.grad(total / BATCH, list(weights.values())))

    for step in range(STEPS):
        key = stream_key(0, "forward", step * BATCH)
        parts = list(enumerate(torch.from_numpy(order.ids(step * BATCH, BATCH)).split(MICRO)))
        groups = [parts] if case.how.by == "global" else [[part] for part in parts]
        loss, summed = 0.0, [torch.zeros_like(one) for one in weights.values()]
        for group in groups:
            loss_of_group, slope = gradient(group, key)
            statistics = {name: one.clone() for name, one in model.named_buffers()}
            own = [one.detach().clone() for one in weights.values()]
            scales = [one.abs() if case.how.adaptive else torch.ones_like(one) for one in own]
            norm = torch.cat([(scale * one).flatten() for scale, one in zip(scales, slope, strict=True)]).norm()
            with torch.no_grad():
                for one, grad, scale in zip(weights.values(), slope, scales, strict=True):
                    one += case.how.rho * scale**2 * grad / norm
            _, raised = gradient(group, key)
            with torch.no_grad():
                for one, value in zip(weights.values(), own, strict=True):
                    one.copy_(value)
                for name, one in model.named_buffers():
                    one.copy_(statistics[name])
            loss, summed = loss + loss_of_group, [a + b for a, b in zip(summed, raised, strict=True)]
        for one, grad in zip(weights.values(), summed, strict=True):
            one.grad = grad
        if case.clip is not None:
            nn.utils.clip_grad_norm_(list(weights.values()), case.clip)
        optimizer.step()
        losses.append(loss / BATCH)
    return {"state": {key: one.detach().numpy() for key, one in model.state_dict().items()}, "losses": losses}


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_ranks_does_what_the_loop_by_hand_does(name: str, ranks: Any):
    truth = by_hand(name)
    for world_size in (1, 2, 3, 4) if name in ("each", "all") else (3,):
        found, *_ = ranks(world_size).run(trained, name)
        assert found["losses"] == pytest.approx(truth["losses"], rel=1e-12)
        for key, one in truth["state"].items():
            error = np.abs(found["state"][key] - one).max() / max(1.0, np.abs(one).max())
            assert error < 1e-12, (world_size, key)


def test_summed_in_order_it_is_the_same_bit_for_bit_on_any_number_of_ranks(ranks: Any):
    alone, three = (ranks(world_size).run(trained, "all, summed in order")[0]["state"] for world_size in (1, 3))
    assert [key for key in alone if "running" not in key and (alone[key] != three[key]).any()] == []


def one_step(by: Any) -> tuple[bool, int]:
    """Whether a step that a guard leaves out leaves all as it was; how many gradients its ranks have summed."""
    with Runtime.open(precision="fp64") as runtime:
        model, data = Net(spoils=True), random_classification(SAMPLES, 3, (6,), "train")
        plan = BatchPlan.pinned(global_batch_size=BATCH, world_size=runtime.world_size, micro_batch_size=MICRO)
        run = made_run(
            runtime, model, CrossEntropy(), torch.optim.SGD(model.parameters(), lr=0.1), plan, data, lambda _: 0.3, 1,
            guard=Guard("skip", window=20, threshold=None, most_in_a_row=2),
            sharpness_aware=None if by is None else SharpnessAware(0.1, by),
        )  # fmt: skip
        before = {key: one.clone() for key, one in run.module.state_dict().items()}
        calls, status = count_collectives(train, run)
        assert status == "finished"
        is_same = all(torch.equal(one, before[key]) for key, one in run.module.state_dict().items())
        size = sum(one.numel() for one in model.parameters() if one.requires_grad)
        return is_same, sum(
            count for (kind, numbers), count in calls.items() if (kind, numbers) == ("all_reduce", size)
        )


def test_a_step_that_is_left_out_changes_nothing_and_only_a_global_ascent_sends_more(ranks: Any):
    sums = {by: ranks(2).run(one_step, by) for by in (None, "micro", "global")}
    assert all(is_same for found in sums.values() for is_same, _ in found)
    assert {by: found[0][1] for by, found in sums.items()} == {None: 1, "micro": 1, "global": 2}


def test_a_gradient_of_zero_climbs_nowhere_and_weights_come_back_bit_for_bit():
    weights, nothing = [torch.randn(3), torch.randn(2)], [torch.zeros(3), None]
    kept = [one.clone() for one in weights]
    with EACH.raised(weights, nothing):
        assert all(map(torch.equal, weights, kept))
    with EACH.raised(weights, [torch.randn(3), torch.randn(2)]):
        squares = [float((a - b).square().sum()) for a, b in zip(weights, kept, strict=True)]
    assert sum(squares) ** 0.5 == pytest.approx(EACH.rho, rel=1e-6)
    assert all(map(torch.equal, weights, kept))
