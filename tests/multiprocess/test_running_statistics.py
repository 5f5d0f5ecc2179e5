"""Running statistics are a function of all micro-batches in their order, whichever ranks computed them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.data import ArrayDataset
from largebatch.distributed.runtime import Runtime
from largebatch.losses import CrossEntropy
from largebatch.training.loop import train
from tests.multiprocess.made_run import made_run
from tests.sums import assert_same_sums

pytestmark = pytest.mark.quick

NUM_SAMPLES, MICRO = 40, 3
LARGEST = 10.0  # means are of numbers of N(0, 1), up to 3 in size, and variances of their squares


class Frozen(nn.BatchNorm1d):
    """A batch norm that stays in eval mode, as in fine-tuning: its statistics are part of the forward pass."""

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


class Net(nn.Module):
    """One batch norm of each kind, and a buffer of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.BatchNorm1d(6), nn.BatchNorm1d(6, momentum=0.3), nn.BatchNorm1d(6, momentum=None), Frozen(6),
            nn.Linear(6, 3),
        )  # fmt: skip
        self.layers[3].running_mean.fill_(0.25)
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.largest.copy_(inputs.abs().max())
        return self.layers(inputs)


def data() -> ArrayDataset:
    generator = torch.Generator().manual_seed(1)
    return ArrayDataset(
        torch.randn(NUM_SAMPLES, 6, generator=generator), torch.randint(0, 3, (NUM_SAMPLES,), generator=generator)
    )


def buffers_after(batch: int, steps: int, merges_at: tuple[int, ...], precision: str = "fp64") -> dict[str, Any]:
    """All buffers after `steps`, merged at the end and after the steps in `merges_at`; and before the last merge."""
    with Runtime.open(precision=precision) as runtime:
        model, dataset = Net(), data()
        plan = BatchPlan.pinned(global_batch_size=batch, world_size=runtime.world_size, micro_batch_size=MICRO)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = made_run(runtime, model, CrossEntropy(), optimizer, plan, dataset, lambda _: 0.1, 0)
        for step in range(1, steps + 1):
            run.steps.end_after(step)
            train(run)
            before = {name: buffer.clone() for name, buffer in run.module.named_buffers()}
            if step in (*merges_at, steps):
                run.gradient.statistics.merge()
        after = dict(run.module.named_buffers())
        return {
            "before": {name: buffer.numpy() for name, buffer in before.items()},
            "after": {name: buffer.numpy() for name, buffer in after.items()},
        }


def sequential(batch: int, steps: int) -> dict[str, np.ndarray]:
    """The definition: one process, one plain torch forward and backward per micro-batch, in their order."""
    model, dataset = Net().double().train(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    order = SampleOrder(NUM_SAMPLES, 0)
    for step in range(steps):
        optimizer.zero_grad()
        for ids in torch.from_numpy(order.ids(step * batch, batch)).split(MICRO):
            outputs = model(dataset.inputs[ids].double())
            (nn.functional.cross_entropy(outputs, dataset.targets[ids], reduction="sum") / batch).backward()
        optimizer.step()
    return {name: buffer.numpy() for name, buffer in model.named_buffers()}


@pytest.mark.fault(53, "batch norm statistics per rank", "merged exactly")
@pytest.mark.parametrize(
    ("batch", "merges_at"),
    [(12, ()), (14, ()), pytest.param(14, (2, 5), marks=pytest.mark.other_processor)],
    ids=["even", "ragged", "merged"],
)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_any_number_of_ranks_arrives_at_the_statistics_of_one(ranks, world_size, batch, merges_at):
    expected = sequential(batch, 6)
    results = ranks(world_size).run(buffers_after, batch, 6, merges_at)
    for result in results:
        for name in expected.keys() - {"largest"}:
            assert_same_sums(result["after"][name], expected[name], terms=LARGEST, name=name)
    assert np.all(expected["layers.3.running_mean"] == 0.25), "a frozen layer"
    assert expected["layers.0.num_batches_tracked"] == 6 * -(-batch // MICRO)


def test_between_merges_the_own_statistics_of_a_rank_keep_their_size(ranks):
    """Each rank knows only its micro-batches, but is not off by a factor: variances of N(0, 1) are near 1."""
    for result in ranks(4).run(buffers_after, 14, 6, ()):
        for number in (0, 1, 2):
            variance = result["before"][f"layers.{number}.running_var"]
            assert variance.min() > 0.05
            assert variance.max() < 5


def test_a_buffer_of_the_users_own_is_left_alone(ranks):
    """No average over ranks is what one process arrives at: whether it may move at all is asked before the run."""
    one, two = ranks(2).run(buffers_after, 14, 1, ())
    assert one["before"]["largest"] != two["before"]["largest"]
    for result in (one, two):
        assert result["before"]["largest"] == result["after"]["largest"]


def test_float32_statistics_differ_by_rounding_alone(ranks):
    expected = sequential(14, 6)
    for result in ranks(2).run(buffers_after, 14, 6, (3,), "fp32"):
        for name in expected.keys() - {"largest"}:
            assert_same_sums(result["after"][name], expected[name], terms=LARGEST, digits=1e-6, name=name)
