"""Batch norm over the whole global batch: as one big batch in plain torch, on any number of ranks and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.random_keys import stream_key
from largebatch.data import ArrayDataset, paired_views, random_classification
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.exact_batch_norm import ExactBatchNorm, batch_norms
from largebatch.losses import CrossEntropy
from largebatch.losses.coupled import InfoNCE
from largebatch.models import TwoViews
from largebatch.training.loop import train
from tests.multiprocess.counting import count_collectives
from tests.multiprocess.made_run import made_run
from tests.multiprocess.test_contract import SEED, Recorder, lr_at, plan_of

STEPS, BATCH = 6, 22
# (ranks, largest micro-batch): accumulation, unequal ranks, unequal micro-batches, one sample per micro-batch.
SPLITS = [(1, 22), (1, 5), (1, 1), (2, 11), (2, 4), (3, 22), (3, 3), (4, 2)]


class Branches(nn.Module):
    """Batch norms one after another and side by side, with and without affine, momentum and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.long = nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6, momentum=None), nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6, affine=False),
        )  # fmt: skip
        self.short = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, momentum=0.4))
        self.head = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6 * 64, track_running_stats=False), nn.Linear(6 * 64, 5))
        self.frozen = nn.BatchNorm2d(6)

    def train(self, mode: bool = True) -> Branches:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.frozen(self.stem(inputs))
        return self.head(F.relu(self.long(hidden) + self.short(hidden)))


@dataclass(frozen=True)
class Problem:
    kind: str = "branches"
    precision: str = "fp64"
    max_micro: int | None = None
    micro: int | None = None
    exact: bool = True
    steps: int = STEPS


def model_and_data(kind: str) -> tuple[nn.Module, Any, ArrayDataset]:
    torch.manual_seed(stream_key(SEED, "initialisation"))
    if kind == "contrastive":
        encoder = nn.Sequential(nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 6), nn.BatchNorm1d(6))
        return TwoViews(encoder), InfoNCE(0.3), paired_views(50, (16,), "train", noise=1.0)
    images = random_classification(50, 5, (1, 8, 8), "train")
    model: nn.Module = Branches()
    if kind == "dropout":
        model = nn.Sequential(nn.Dropout(0.2), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3),
                              nn.Flatten(), nn.Linear(144, 5))  # fmt: skip
    return model, CrossEntropy(), images


def trajectory(problem: Problem) -> dict[str, Any]:
    with Runtime.open(precision=problem.precision) as runtime:
        model, loss, data = model_and_data(problem.kind)
        plan = plan_of(BATCH, runtime.world_size, micro=problem.micro, max_micro=problem.max_micro)
        recorder = Recorder()
        run = made_run(
            runtime,
            model,
            loss,
            torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9),
            plan,
            data,
            lr_at,
            problem.steps,
            seed=SEED,
            exact_batch_norm=problem.exact,
            log_every=1,
            observers=[recorder],
        )
        train(run)
        before = {name: buffer.clone() for name, buffer in run.module.named_buffers()}
        run.gradient.statistics.merge()
        return {
            "weights": [parameter.detach().double().numpy() for parameter in run.module.parameters()],
            "buffers": [buffer.double().numpy() for buffer in run.module.buffers()],
            "merging changes nothing": all(torch.equal(before[n], one) for n, one in run.module.named_buffers()),
            "losses": recorder.losses,
        }


def one_big_batch(problem: Problem) -> dict[str, Any]:
    """The same training in plain torch."""
    model, loss, data = model_and_data(problem.kind)
    model = model.double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    order, losses = SampleOrder(len(data), SEED), []
    for step in range(problem.steps):
        optimizer.param_groups[0]["lr"] = lr_at(step * BATCH)
        inputs, targets = data.fetch(order.ids(step * BATCH, BATCH))
        optimizer.zero_grad()
        value = loss.loss_per_sample(model(inputs.double()), targets).mean()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return {
        "weights": [parameter.detach().numpy() for parameter in model.parameters()],
        "buffers": [buffer.double().numpy() for buffer in model.buffers()],
        "losses": losses,
    }


def largest_error(found: dict[str, Any], truth: dict[str, Any], *keys: str) -> float:
    """Of any tensor, relative to its largest entry; absolute where the truth is zero, as in a frozen norm."""
    errors = []
    for key in keys or ("weights", "buffers", "losses"):
        for ours, theirs in zip(found[key], truth[key], strict=True):
            errors.append(np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1.0))
    assert not np.isnan(errors).any()
    return float(max(errors))


@pytest.mark.parametrize(
    ("kind", "world_size", "max_micro"),
    [
        *(("branches", *split) for split in SPLITS if split != (3, 3)),
        pytest.param("branches", 3, 3, marks=pytest.mark.other_processor),
        *(("contrastive", *split) for split in ((1, 1), (2, 11), (3, 3))),
    ],
)
def test_exact_batch_norm_equals_one_big_batch(ranks, kind: str, world_size: int, max_micro: int):
    problem = Problem(kind, max_micro=max_micro)
    truth = one_big_batch(problem)
    for found in ranks(world_size).run(trajectory, problem):
        assert largest_error(found, truth) < 1e-10
        assert found["merging changes nothing"]


def test_without_it_the_same_comparison_fails(ranks):
    """The defect that it is for: statistics of micro-batches, and statistics of ranks."""
    for world_size, max_micro in ((1, 5), (2, 11)):
        problem = Problem(max_micro=max_micro, exact=False)
        assert largest_error(ranks(world_size).run(trajectory, problem)[0], one_big_batch(problem)) > 1e-3


def test_float32_stays_near_one_big_batch(ranks):
    problem = Problem(precision="fp32", max_micro=4, steps=2)
    assert largest_error(ranks(2).run(trajectory, problem)[0], one_big_batch(problem)) < 2e-5


def test_bfloat16_autocast_stays_near_one_big_batch(ranks):
    problem = Problem(precision="bf16", max_micro=4, steps=2)
    found, truth = ranks(2).run(trajectory, problem)[0], one_big_batch(problem)
    assert largest_error(found, truth, "losses") < 5e-3
    ghosts = ranks(2).run(trajectory, replace(problem, exact=False))[0]
    assert largest_error(ghosts, truth, "losses") > 2e-2


def test_dropout_is_that_of_the_pinned_micro_batch_on_any_number_of_ranks(ranks):
    problem = Problem("dropout", micro=4)
    (alone,) = ranks(1).run(trajectory, problem)
    assert largest_error(ranks(3).run(trajectory, problem)[0], alone) < 1e-12
    # And each micro-batch has draws of its own: with one generator handed on, another cut would draw the same.
    other = ranks(1).run(trajectory, Problem("dropout", micro=11))[0]
    assert largest_error(other, alone) > 1e-3


def collectives_of_a_step(problem: Problem) -> Any:
    return count_collectives(trajectory, problem)[0]


@pytest.mark.parametrize(("world_size", "max_micro"), [(2, 11), (2, 2), (3, 2)])
def test_a_norm_costs_one_small_collective_per_direction_whatever_the_accumulation_and_the_ranks(
    ranks, world_size: int, max_micro: int
):
    calls = ranks(world_size).run(collectives_of_a_step, Problem("dropout", "fp32", max_micro=max_micro, steps=1))
    parameters = sum(parameter.numel() for parameter in model_and_data("dropout")[0].parameters())
    for of_rank in calls:  # four channels
        assert [of_rank["all_reduce", size] for size in (2 * 4 + 1, 2 * 4, parameters)] == [1, 1, 1]


class Doubled(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_models_without_plain_batch_norms_are_refused():
    with pytest.raises(ValueError, match="no batch norm"):
        batch_norms(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Doubled has a forward of its own"):
        batch_norms(nn.Sequential(nn.BatchNorm1d(2), Doubled(2)))


def test_evaluation_and_a_plain_forward_pass_are_those_of_torch():
    with Runtime.open(precision="fp32") as runtime:
        torch.manual_seed(0)
        plain, exact = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        ExactBatchNorm(runtime, nn.Sequential(exact))
        inputs = torch.randn(5, 3)
        for train_mode in (True, False):
            plain.train(train_mode)
            exact.train(train_mode)
            assert torch.equal(plain(inputs), exact(inputs))


class SometimesNormalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.first(inputs) if inputs[0, 0] > 0 else self.second(inputs)


def test_micro_batches_that_go_different_ways_are_refused_and_leave_no_thread():
    import threading

    with Runtime.open(precision="fp32") as runtime:
        module = SometimesNormalised()
        norms = ExactBatchNorm(runtime, module)
        before = threading.active_count()
        with pytest.raises(ValueError, match="every sample must take the same way"):
            norms.forward_all([lambda: module(torch.ones(2, 3)), lambda: module(-torch.ones(2, 3))])
        with pytest.raises(ValueError, match="one value per channel"):
            norms.forward_all([lambda: module(torch.ones(1, 3))])
        with pytest.raises(ZeroDivisionError):
            norms.forward_all([lambda: module(torch.ones(2, 3)), lambda: 1 / 0])
        assert threading.active_count() == before
