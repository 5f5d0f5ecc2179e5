"""The order as samplers: what all ranks get together are the samples of the order, in torch's own DataLoader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from largebatch.batch import BatchPlan, BatchRamp, SampleOrder
from largebatch.data import ArrayDataset, GlobalBatchSampler, MicroBatchLoader, OrderSampler

SAMPLES = 23
ORDER = SampleOrder(SAMPLES, seed=4)
FOR_TWO = BatchPlan.solve(global_batch_size=4, world_size=2)
DATA = TensorDataset(torch.arange(SAMPLES))


@pytest.fixture(autouse=True)
def _no_launcher(no_launcher: None) -> None: ...


@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (2, 0), (3, 0), (5, 0)])
def test_equally_long_batches_of_ranks_are_the_next_samples_of_the_order(world_size: int, workers: int):
    samplers = [OrderSampler(ORDER, rank, world_size) for rank in range(world_size)]
    loaders = [DataLoader(DATA, 2, sampler=one, num_workers=workers) for one in samplers]
    position = 0
    for _ in range(3):
        assert [len(loader) for loader in loaders] == [len(loaders[0])] * world_size
        for parts in zip(*loaders, strict=True):
            ids = np.stack([part[0].numpy() for part in parts], axis=1).reshape(-1)  # rank by rank
            assert ids.tolist() == ORDER.ids(position, len(ids)).tolist()
            position += len(ids)
    assert {one.samples_seen for one in samplers} == {position}
    assert 3 * SAMPLES - world_size < position <= 3 * SAMPLES


def test_a_sampler_goes_on_from_a_position_and_at_an_epoch():
    whole = [*OrderSampler(ORDER, 1, 2), *OrderSampler(ORDER, 1, 2, samples_seen=22)]
    assert whole == ORDER.ids(0, 46)[1::2].tolist()
    sampler = OrderSampler(ORDER, 0, 1, samples_seen=5)
    sampler.set_epoch(0)  # as frameworks say it before an epoch that was begun
    assert list(sampler) == ORDER.ids(5, 18).tolist()
    sampler.set_epoch(1)
    next(iter(sampler))  # left
    sampler.set_epoch(2)
    assert list(sampler) == ORDER.ids(46, 23).tolist()


def test_an_epoch_that_is_announced_loses_no_sample_of_the_one_before():
    samplers, found = [OrderSampler(ORDER, rank, 5) for rank in range(5)], []
    for epoch in range(5):
        for one in samplers:
            one.set_epoch(epoch)
        found += np.stack([[*one] for one in samplers], axis=1).reshape(-1).tolist()
    assert found == ORDER.ids(0, len(found)).tolist()
    assert len(found) == 5 * SAMPLES


@pytest.mark.parametrize("world_size", [1, 3])
def test_micro_batches_are_those_of_the_loader(world_size: int):
    plans = [BatchPlan.solve(global_batch_size=size, world_size=world_size, max_micro_batch_size=2) for size in (7, 10)]
    ramp = BatchRamp(tuple(plans), (14,))
    data = ArrayDataset(torch.arange(SAMPLES)[:, None], torch.zeros(SAMPLES))
    for rank in range(world_size):
        sampler = GlobalBatchSampler(ORDER, ramp, rank)
        loader, found, lengths = DataLoader(DATA, batch_sampler=sampler), [], []
        for _ in range(2):
            lengths.append((len(loader), sampler.samples_seen))
            found += [batch[0].tolist() for batch in loader]
        micros = MicroBatchLoader(data, ORDER, ramp, rank).micro_batches(0, 6)
        assert found == [micro.ids.tolist() for micro in micros]
        assert sampler.samples_seen == 7 + 7 + 4 * 10
        assert [position for _, position in lengths] == [0, 24]
        assert sum(length for length, _ in lengths) == len(found)
        part = GlobalBatchSampler(ORDER, ramp, rank, samples_seen=14, num_steps=1)
        assert sum(map(len, part)) == plans[1].rank_batch_size(rank)


def test_an_order_alone_says_what_a_loader_takes():
    with pytest.raises(TypeError, match=r"sampler=OrderSampler\(order\), or batch_sampler=GlobalBatchSampler"):
        next(iter(DataLoader(DATA, sampler=SampleOrder(SAMPLES))))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: OrderSampler(SampleOrder(2), 0, 3), "2 samples for 3 ranks"),
        (lambda: OrderSampler(ORDER, samples_seen=-1), "samples_seen=-1"),
        (lambda: OrderSampler(ORDER, rank=1), "rank=1, world_size=None: give both"),
        (lambda: GlobalBatchSampler(ORDER, BatchPlan.solve(global_batch_size=4, world_size=2)), "is for 2 ranks"),
        (
            lambda: GlobalBatchSampler(ORDER, BatchPlan.solve(global_batch_size=4, world_size=2), 2),
            "ranks count from 0",
        ),
    ],
)
def test_samplers_that_cannot_be_exact_are_refused(make: Any, said: str):
    with pytest.raises(ValueError, match=said):
        make()
