"""Micro-batches reach a GPU as they are stored, from pinned memory, and nobody waits for them."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from largebatch.data import ArrayDataset
from tests.device.conftest import FakeGpus
from tests.device.fake_cuda import GPU
from tests.device.run_record import Counts

SIDE = 8


def pixels(num_samples: int, num_classes: int, shape: Sequence[int], split: str) -> ArrayDataset:
    """Random grey images, as bytes in memory."""
    generator = torch.Generator().manual_seed(len(split))
    images = torch.randint(0, 256, (num_samples, *shape), dtype=torch.uint8, generator=generator)
    return ArrayDataset(images, torch.arange(num_samples) % num_classes)


class Files(Dataset[Any]):
    """The same, one by one, as files are read."""

    def __init__(self, num_samples: int, num_classes: int, shape: Sequence[int], split: str) -> None:
        self._inner = pixels(num_samples, num_classes, shape, split)

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: int) -> Any:
        image, label = self._inner[index]
        return image, int(label)

    @property
    def label_range(self) -> tuple[int, int] | None:
        return self._inner.label_range

    def stored_form(self) -> tuple[Any, Any]:
        stored = copy.copy(self)
        stored._inner, complete = self._inner.stored_form()
        return stored, complete


def on(dataset: str) -> list[str]:
    targets = [f"data.{part}._target_=tests.device.test_data.{dataset}" for part in ("train", "validation")]
    return ["data=synthetic", *targets, "data.train.num_samples=256", "data.validation.num_samples=64"]


AUGMENTED = "data.augment.crop_padding=1 data.augment.flip=true data.augment.cutout=2"
IMAGE, LABEL, DRAWS = SIDE * SIDE, 8, 5 * 8  # bytes
RUNS = {
    "augmented": ([*on("pixels"), *AUGMENTED.split()], IMAGE + LABEL + DRAWS),
    # A mixed sample has two labels and a share, and seven numbers that say how it is mixed.
    "mixed": ([*on("pixels"), *AUGMENTED.split(), "data.augment.mixup=0.2"], IMAGE + 3 * 8 + DRAWS + 7 * 8),
    "without a thread": ([*on("pixels"), "data.prefetch=0"], IMAGE + LABEL),
    "through workers": ([*on("Files"), "data.num_workers=1", "data.timeout_s=60"], IMAGE + LABEL),
    # Their steps begin with all of their micro-batches, which wait on the host.
    "samples may be skipped": ([*on("pixels"), *AUGMENTED.split(), "data.on_bad_sample=skip"], IMAGE + LABEL + DRAWS),
    "files may be skipped": (
        [*on("Files"), "data.num_workers=1", "data.timeout_s=60", "data.on_bad_sample=skip"],
        IMAGE + LABEL,
    ),
}
STEPS, MICRO = 6, 4


@pytest.mark.parametrize("name", RUNS)
def test_each_sample_is_sent_once_in_few_bytes_from_pinned_memory(fake_gpus: FakeGpus, name: str) -> None:
    overrides, size = RUNS[name]
    run = fake_gpus.train(*overrides, f"batch.max_micro={MICRO}", steps=STEPS)
    assert run.problems == []
    # By steps: a thread sends some of them while an earlier one is computed.
    data = [
        Counter(
            {place: count for place, count in part.copies.items() if "device_feed" in place or "place_tensor" in place}
        )
        for part in (run.start, *run.steps)
    ]
    assert all(place.startswith("pinned") for part in data for place in part), data
    sent, per_step = sum(part.total() for part in data), 64 // 8 * size
    assert (STEPS - 1) * per_step <= sent <= STEPS * per_step
    if "skipped" not in name:
        assert [step.waits for step in run.plain()] == [{}] * len(run.plain())


def evaluation_counted(overrides: Sequence[str]) -> Counts:
    """Of one evaluation of both sets; the one before has set everything up."""
    from largebatch.run.build import open_run
    from largebatch.run.prepare import prepare
    from tests.unit.composing import compose_run

    common = "logger=none", "observers.progress=false", "observers.evaluation.micro=16", "batch.total=64"
    prepared = prepare(compose_run(*common, *overrides), {})
    with GPU, open_run(prepared, lambda: False, []) as opened:
        opened.evaluation.measure(opened.run)
        GPU.take()
        opened.evaluation.measure(opened.run)
        return GPU.take()


@pytest.mark.parametrize("dataset", ["pixels", "Files"])
def test_an_evaluation_waits_once_for_each_set(fake_gpus: FakeGpus, dataset: str) -> None:
    counts = fake_gpus.call(evaluation_counted, on(dataset), world_size=1)
    waits = Counter({place.rpartition(":")[0]: number for place, number in counts.waits.items()})
    assert waits.total() <= 2, waits
    assert counts.copies.total() == 2 * 64 * (IMAGE + LABEL)
    assert all(place.startswith("pinned") for place in counts.copies)


def threads_and_device() -> tuple[list[int], int, bool]:
    """Devices that a loading thread chose, threads that are left, and whether its batches lie on the device."""
    from largebatch.batch.order import SampleOrder
    from largebatch.batch.plan import BatchPlan
    from largebatch.data import MicroBatchLoader

    chosen: list[int] = []
    torch.cuda.current_device = lambda: 5
    torch.cuda.set_device = lambda device: chosen.append(device) if threading.current_thread().daemon else None
    plan = BatchPlan.solve(global_batch_size=8, world_size=1, max_micro_batch_size=4)
    with GPU:
        loader = MicroBatchLoader(pixels(16, 2, (1, 8, 8), ""), SampleOrder(16, 0), plan, 0, to_gpu=True, prefetch=2)
        batches = loader.micro_batches(0, 100)
        batch = next(batches)
        loader.close()
    left = [one for one in threading.enumerate() if one.name == "largebatch-data"]
    inputs = batch.inputs
    assert isinstance(inputs, torch.Tensor)
    on_device = inputs.is_cuda and inputs.dtype == torch.float32 and batch.targets.is_cuda
    assert np.array_equal(batch.ids, SampleOrder(16, 0).ids(0, 4))
    return chosen, len(left), on_device


def test_the_thread_works_on_the_device_of_its_rank(fake_gpus: FakeGpus) -> None:
    """A new thread starts on the first GPU: every rank of a node would open a context there."""
    assert fake_gpus.call(threads_and_device, world_size=1) == ([5], 0, True)
