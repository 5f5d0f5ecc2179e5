"""Modules skipped at random or by what they see, and buffers that each pass moves: truth is plain torch."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.random_keys import stream_key
from largebatch.data import random_classification
from largebatch.distributed.generators import seed_generators
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import micro_batch_key
from largebatch.losses import CrossEntropy
from largebatch.training.loop import train
from tests.multiprocess.made_run import made_run

SAMPLES, BATCH, MICRO, STEPS = 60, 15, 4, 8  # 4 micro-batches a step, the last of 3 samples
BY_STEP = ("stem.parametrizations.weight.0._u", "stem.parametrizations.weight.0._v", "passes", "slow.weight")
WAYS: dict[str, dict[str, Any]] = {
    "all_reduce": {},
    "ordered": {"ordered": True},
    "lower": {"halves_micro_batches": True},
}


class Net(nn.Module):
    """Blocks left out by draws of torch, numpy and Python, an expert for few samples, and three kinds of state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = spectral_norm(nn.Linear(6, 8))
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.expert, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("passes", torch.zeros(()))
        self.slow = nn.Linear(8, 3, bias=False).requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1
        hidden = self.stem(inputs) / (1 + 0.1 * self.passes)
        draws = torch.rand(()), np.random.rand(), random.random()  # noqa: NPY002
        for block, draw in zip(self.blocks, draws, strict=True):
            if draw > 0.85:
                hidden = hidden + block(hidden).tanh()
        rare = (inputs[:, 0] > 1.9).nonzero()[:, 0]
        if len(rare):
            hidden = hidden.index_add(0, rare, self.expert(hidden[rare]))
        with torch.no_grad():
            self.slow.weight.lerp_(self.head.weight, 0.1)
        return self.head(hidden) - self.slow(hidden)


def lr_at(samples_seen: int) -> float:
    return 0.2


def trained(way: str) -> dict[str, Any]:
    """Weights and buffers after `STEPS` steps, and the parameters that the last step left without a gradient."""
    with Runtime.open(precision="fp64") as runtime:
        model, dataset = Net(), random_classification(SAMPLES, 3, (6,), "train")
        plan = BatchPlan.pinned(global_batch_size=BATCH, world_size=runtime.world_size, micro_batch_size=MICRO)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.1)
        run = made_run(
            runtime,
            model,
            CrossEntropy(),
            optimizer,
            plan,
            dataset,
            lr_at,
            STEPS,
            step_buffers=BY_STEP,
            skips_parameters=True,
            **WAYS[way],
        )
        train(run)
        run.gradient.statistics.merge()
        absent = {name for name, one in run.module.named_parameters() if one.grad is None}
        return {"state": {name: value.numpy() for name, value in run.module.state_dict().items()}, "absent": absent}


def in_plain_torch() -> tuple[dict[str, Tensor], list[set[str]]]:
    """One process; the parameters without a gradient, step by step."""
    model, dataset, order = Net().double(), random_classification(SAMPLES, 3, (6,), "train"), SampleOrder(SAMPLES, 0)
    kept = dict(model.named_buffers()) | dict(model.named_parameters())
    velocity: dict[str, Tensor] = {}
    absent = []
    for step in range(STEPS):
        model.zero_grad()
        start = {name: kept[name].detach().clone() for name in BY_STEP}
        for index, part in enumerate(torch.from_numpy(order.ids(step * BATCH, BATCH)).split(MICRO)):
            for name, value in start.items():
                kept[name].detach().copy_(value)
            seed_generators(micro_batch_key(stream_key(0, "forward", step * BATCH), index))
            outputs = model(dataset.inputs[part].double())
            (nn.functional.cross_entropy(outputs, dataset.targets[part], reduction="sum") / BATCH).backward()
        absent.append({name for name, one in model.named_parameters() if one.grad is None})
        with torch.no_grad():
            for name, one in model.named_parameters():
                if one.grad is not None:
                    grad = one.grad + 0.1 * one
                    velocity[name] = grad + 0.9 * velocity.get(name, torch.zeros_like(one))
                    one -= 0.2 * velocity[name]
    return dict(model.state_dict()), absent


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_a_step_leaves_out_and_moves_is_what_one_process_does(ranks, world_size):
    expected, absent = in_plain_torch()
    kinds = {name.split(".")[0] + name.split(".")[1] for one in absent for name in one}
    assert {"blocks0", "blocks1", "blocks2", "expertweight"} <= kinds, "each kind was left out by a whole step"
    assert any("blocks.0.weight" not in one for one in absent), "and used by another one"
    assert float(expected["passes"]) == STEPS
    for way in WAYS:
        for result in ranks(world_size).run(trained, way):
            assert result["absent"] == absent[-1], way
            for name, value in expected.items():
                torch.testing.assert_close(torch.from_numpy(result["state"][name]), value, rtol=1e-10, atol=1e-13)


class EverySecond(nn.Linear):
    """Leaves its bias out in a way that no dry run can see coming."""

    calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.linear(inputs, self.weight, self.bias if self.calls % 2 else None)


def surprised() -> str:
    runtime = Runtime.open(precision="fp64")
    try:
        model, dataset = EverySecond(6, 3), random_classification(SAMPLES, 3, (6,), "train")
        plan = BatchPlan.pinned(global_batch_size=BATCH, world_size=runtime.world_size, micro_batch_size=MICRO)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        train(made_run(runtime, model, CrossEntropy(), optimizer, plan, dataset, lr_at, STEPS))
    except RuntimeError as error:
        return str(error)
    finally:
        runtime.close()
    return "trained"


def test_a_parameter_that_is_left_out_without_a_sign_is_an_error_with_the_rule(ranks):
    """Both ranks have two micro-batches, and each leaves the bias out of the second one, in which DDP reduces."""
    for message in ranks(2).run(surprised):
        assert message.startswith("A parameter got no gradient in the last pass of this rank")
