"""Memory for gradients: accumulation needs no more than a single micro-batch of the same size."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from largebatch.batch.plan import BatchPlan
from largebatch.data import random_classification
from largebatch.distributed.runtime import Runtime
from largebatch.gradient import out_of_memory
from largebatch.losses import CrossEntropy
from largebatch.training.loop import Observer, Run, train
from tests.multiprocess.made_run import made_run

WIDTH, LAYERS, MICRO, STEPS = 64, 12, 2, 4
LAYER_BYTES = 4 * (WIDTH + 1) * WIDTH


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that were made inside and are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in tree_flatten(result)[0]:
            if isinstance(one, torch.Tensor):
                storage = one.untyped_storage()
                self.alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.alive = {
            key: (reference, size) for key, (reference, size) in self.alive.items() if not reference.expired()
        }
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


class Peaks(Observer):
    """Notes how many bytes were alive at once in each step: weights, buckets, momentum, gradients, activations."""

    def __init__(self, live: Live) -> None:
        self.live, self.found = live, []

    def after_step(self, run: Run, report: Any) -> None:
        self.found.append(self.live.peak)
        self.live.peak = 0


def peaks_of(num_parts: int, options: dict[str, Any]) -> list[int]:
    """Peaks of the steps of a run with so many micro-batches per rank."""
    runtime = Runtime.open()
    try:
        torch.manual_seed(0)
        size = MICRO * num_parts * runtime.world_size
        data = random_classification(STEPS * size, 3, (WIDTH,), "train")
        plan = BatchPlan.solve(global_batch_size=size, world_size=runtime.world_size, max_micro_batch_size=MICRO)
        with Live() as live, mock.patch.object(out_of_memory, "RESERVE_BYTES", 1):  # it is there in every step
            model = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(LAYERS)))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
            peaks = Peaks(live)
            run = made_run(
                runtime, model, CrossEntropy(), optimizer, plan, data, lambda _: 0.1, STEPS, observers=[peaks],
                log_every=100, **options,
            )  # fmt: skip
            live.peak = 0
            assert train(run) == "finished"
        return peaks.found
    finally:
        runtime.close()


@pytest.mark.parametrize(
    "options", [{}, {"recompute_every": 1}, {"halves_micro_batches": True, "bucket_mb": LAYER_BYTES / 2**20}], ids=str
)
def test_several_micro_batches_need_the_memory_of_one(ranks, options):
    for one, several in zip(ranks(2).run(peaks_of, 1, {}), ranks(2).run(peaks_of, 3, options), strict=True):
        for step, (least, found) in enumerate(zip(one, several, strict=True), start=1):  # checksums and pieces: 2 more
            assert found <= least + 3 * LAYER_BYTES, f"step {step}: {(found - least) / LAYER_BYTES:.1f} layers more"


def test_an_ordered_sum_needs_one_gradient_on_any_number_of_ranks(ranks):
    options = {"ordered": True, "bucket_mb": LAYER_BYTES / 2**20}
    for one, ordered in zip(ranks(3).run(peaks_of, 1, {}), ranks(3).run(peaks_of, 1, options), strict=True):
        for least, found in zip(one[2:], ordered[2:], strict=True):  # momentum, and DDP's buckets, are there
            assert found <= least + (LAYERS + 3) * LAYER_BYTES, f"{(found - least) / LAYER_BYTES:.1f} layers more"
