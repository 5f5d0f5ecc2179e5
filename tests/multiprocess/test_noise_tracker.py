"""The noise scale of a loop of one's own, against gradients of micro-batches that are taken one by one in float64."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from largebatch.diagnostics import track
from tests.noise_by_hand import noise_by_hand

STEPS = 3


class Own(nn.Module):
    """A frozen layer, a buffer, a parameter that no pass uses, and one that only some micro-batches use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm(6))
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.head, self.spare, self.unused = nn.Linear(6, 1), nn.Linear(6, 1), nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.full((1,), 0.5))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.frozen(self.body(inputs))
        return self.head(hidden) + self.shift + (self.spare(hidden) if inputs[0, 0] > 0 else 0)


def data_of(step: int, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    inputs = [torch.randn(size, 5, generator=generator, dtype=torch.float64) + 0.3 for size in sizes]
    return [(one, one.sum(dim=1, keepdim=True) + torch.randn(len(one), 1, generator=generator)) for one in inputs]


def by_hand(model: nn.Module, micro_batches: Sequence[tuple[Tensor, Tensor]], reduction: str) -> tuple[float, ...]:
    def loss_of(model: nn.Module, micro_batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(model(micro_batch[0]), micro_batch[1])

    return noise_by_hand(model, micro_batches, loss_of, [len(inputs) for inputs, _ in micro_batches], reduction)


def tracked_loop(
    sizes: Sequence[int],
    reduction: Any,
    *,
    clip: float | None = None,
    set_to_none: bool = True,
    is_tracked: bool = True,
) -> dict[str, Any]:
    """A loop as people write it; `sizes` of all ranks' micro-batches, rank by rank."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(0)
    module = Own().double()
    model: nn.Module = DistributedDataParallel(module, find_unused_parameters=True) if world_size > 1 else module
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    tracker = track(model, reduction=reduction) if is_tracked else None
    per_rank = len(sizes) // world_size
    found, expected = [], []
    for step in range(STEPS):
        everything = data_of(step, sizes)
        expected.append(by_hand(module, everything, reduction))
        optimizer.zero_grad(set_to_none=set_to_none)
        own = everything[rank * per_rank : (rank + 1) * per_rank]
        for number, (inputs, targets) in enumerate(own, start=1):
            weight = world_size * len(inputs) / sum(sizes) if reduction == "sum" else 1 / per_rank
            is_last = number == per_rank
            with model.no_sync() if isinstance(model, DistributedDataParallel) and not is_last else torch.enable_grad():
                (weight * nn.functional.mse_loss(model(inputs), targets)).backward()
        with torch.no_grad():
            model(own[0][0])  # somebody looks at the training accuracy
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if tracker is not None:
            tracker.noise_scale  # noqa: B018  waits for the ranks
            assert tracker.latest is not None, tracker.left_out
            found.append((tracker.latest.grad_norm, tracker.latest.trace, tracker.latest.grad_sq_norm))
    weights = torch.cat([one.detach().flatten() for one in module.parameters()]).tolist()
    return {"found": found, "expected": expected, "weights": weights}


CASES = [
    (1, [4, 4, 4, 4], "mean"),
    (1, [5, 3, 1, 7], "mean"),
    (1, [5, 3, 1, 7], "sum"),
    (2, [4, 4], "mean"),
    (2, [6, 2], "sum"),
    (2, [3, 3, 3, 2, 3, 3, 3, 1], "mean"),
    (3, [4, 2, 5], "mean"),
    (3, [4, 4, 4, 1, 4, 4, 4, 2, 4, 4, 4, 4], "sum"),
]


@pytest.mark.parametrize(("world_size", "sizes", "reduction"), CASES, ids=str)
def test_every_loop_measures_what_is_computed_by_hand(ranks, world_size, sizes, reduction):
    """Clipped or not, and whether gradients are cleared to None or to zeros."""
    for options in ({}, {"clip": 1e-3, "set_to_none": False}):
        for result in ranks(world_size).run(tracked_loop, sizes, reduction, **options):
            np.testing.assert_allclose(result["found"], result["expected"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("world_size", "sizes"), [(1, [4, 4]), (3, [4, 2, 5])], ids=str)
def test_the_loop_is_the_same_to_the_last_bit(ranks, world_size, sizes):
    tracked, plain = (ranks(world_size).run(tracked_loop, sizes, "mean", is_tracked=one) for one in (True, False))
    assert [one["weights"] for one in tracked] == [one["weights"] for one in plain]


def loop_of_accelerate(sizes: Sequence[int]) -> tuple[Any, Any]:
    """Its accumulation, its DDP, its clipping: the optimizer steps inside of its wrapper."""
    from accelerate import Accelerator

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer = accelerator.prepare(module, torch.optim.AdamW(module.parameters(), lr=0.01))
    found, expected = [], []
    with track(model) as tracker:
        for step in range(2):
            everything = data_of(step, sizes)
            expected.append(by_hand(accelerator.unwrap_model(model), everything, "mean"))
            for inputs, targets in everything[2 * accelerator.process_index :][:2]:
                with accelerator.accumulate(model):
                    accelerator.backward(nn.functional.mse_loss(model(inputs), targets))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1e-2)
                    optimizer.step()
                    optimizer.zero_grad()
            assert tracker.noise_scale is not None
            assert tracker.latest is not None
            found.append((tracker.latest.grad_norm, tracker.latest.trace, tracker.latest.grad_sq_norm))
    return found, expected


def test_a_loop_of_accelerate_is_measured_as_it_is(ranks):
    for found, expected in ranks(2).run(loop_of_accelerate, [4, 3, 4, 1]):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def loop_without_reduction() -> str:
    """Gradients averaged by hand, with and without a word to the tracker."""
    torch.manual_seed(0)
    model = Own().double()
    results = []
    for group in (None, dist.group.WORLD):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with track(model, group=group) as tracker, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            everything = data_of(0, [4, 4, 4, 4])
            optimizer.zero_grad()
            for inputs, targets in everything[2 * dist.get_rank() :][:2]:
                nn.functional.mse_loss(model(inputs), targets).div(2).backward()
            for one in model.parameters():
                if one.requires_grad:
                    one.grad = torch.zeros_like(one) if one.grad is None else one.grad
                    dist.all_reduce(one.grad)  # a sum, which is twice the mean
            optimizer.step()
            try:
                assert tracker.noise_scale is not None
                assert tracker.latest is not None
                results.append(str(np.isclose(tracker.latest.trace, by_hand(model, everything, "mean")[1], rtol=1e-9)))
            except ValueError as error:
                results.append(str(error))
    return " | ".join(results)


def test_ranks_that_the_tracker_does_not_know_are_noticed(ranks):
    for told in ranks(2).run(loop_without_reduction):
        assert "averaged over ranks that the tracker does not know" in told
        assert told.endswith("| True")


def sharded() -> str:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(nn.Linear(4, 4), mesh=init_device_mesh("cpu", (2,)))
    try:
        track(model)
    except ValueError as error:
        return str(error)
    return ""


def test_a_sharded_model_is_refused(ranks):
    for told in ranks(2).run(sharded):
        assert "sharded over ranks (FSDP)" in told
