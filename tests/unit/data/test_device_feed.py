"""The way to a GPU, with a device that is the CPU itself: the numbers are those of the host, bit for bit.

Copies, waits and placement are counted on fake GPUs, in tests/device; those have no numbers.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.data import ArrayDataset, Augmentation, MicroBatchLoader, Mixing
from largebatch.data.device_feed import DeviceFeed
from tests.unit.data.test_ahead import no_thread_stays  # noqa: F401
from tests.unit.data.test_workers import NoisyImages, assert_equal

NUM_SAMPLES = 11
ORDER = SampleOrder(NUM_SAMPLES, seed=2)
PLAN = BatchPlan.solve(global_batch_size=5, world_size=1, max_micro_batch_size=2)
AUGMENT = Augmentation(seed=9, crop_padding=1, flip=True, cutout=2)
MIXED = replace(AUGMENT, mixing=Mixing(mixup=0.4, cutmix=1.0))


class Stream:
    """Does at once what is queued on it, and notes what waits for what."""

    def __init__(self, *_: Any) -> None:
        self.waited_for: list[Any] = []

    def record_event(self) -> Any:
        return object()

    def wait_event(self, event: Any) -> None:
        self.waited_for.append(event)


@pytest.fixture
def on_this_device(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """`to_gpu` copies to the CPU; returns what went over the wire, and the calls of each tensor's `record_stream`."""
    here, noted = Stream(), {"sent": [], "recorded": []}
    for name, value in {
        "is_available": lambda: True, "current_device": lambda: 0, "set_device": lambda _: None, "Stream": Stream,
        "stream": lambda _: contextlib.nullcontext(), "current_stream": lambda _: here,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: noted["sent"].append(tensor) or tensor)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: noted["recorded"].append((tensor, stream)))
    start = DeviceFeed.__init__

    def begun(feed: DeviceFeed, device: torch.device, **options: Any) -> None:
        start(feed, torch.device("cpu"), **options)

    monkeypatch.setattr(DeviceFeed, "__init__", begun)
    return noted


def images() -> ArrayDataset:
    pixels = torch.randint(
        0, 256, (NUM_SAMPLES, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return ArrayDataset(pixels, torch.arange(NUM_SAMPLES), mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.1])


class InDicts:
    """Images under a name, beside another input."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def fetch(self, ids: Any) -> Any:
        inputs, targets = images().fetch(ids)
        return {"pixels": inputs, "place": targets.float()}, targets

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError


def batches(dataset: Any, **options: Any) -> list[Any]:
    loader = MicroBatchLoader(dataset, ORDER, PLAN, 0, seed=4, **options)
    return list(loader.micro_batches(5, 5))


@pytest.mark.parametrize("augment", [None, AUGMENT, MIXED, lambda inputs, ids, epochs: inputs.flip(3)])
@pytest.mark.parametrize("keeps_steps", [False, True])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_on_the_device_are_bitwise_those_on_the_host(
    on_this_device: dict[str, list[Any]], augment: Any, prefetch: int, keeps_steps: bool
) -> None:
    found = batches(images(), augment=augment, to_gpu=True, prefetch=prefetch, keeps_steps=keeps_steps)
    assert_equal(found, batches(images(), augment=augment))
    sent = {tensor.dtype for tensor in on_this_device["sent"] if tensor.dim() == 4}
    is_ours = augment is None or isinstance(augment, Augmentation)
    assert sent == {torch.uint8 if is_ours else torch.float32}  # augmentation of somebody else's is done on the host


def test_batches_of_workers_are_bitwise_those_on_the_host(on_this_device: dict[str, list[Any]]) -> None:
    options: Any = {"augment": AUGMENT, "num_workers": 1, "timeout_s": 60}
    assert_equal(batches(NoisyImages(), to_gpu=True, prefetch=2, **options), batches(NoisyImages(), augment=AUGMENT))


def test_images_in_a_dict_are_augmented_on_the_device(on_this_device: dict[str, list[Any]]) -> None:
    ours, theirs = batches(InDicts(), augment=AUGMENT, to_gpu=True), batches(InDicts(), augment=AUGMENT)
    for one, other in zip(ours, theirs, strict=True):
        assert one.inputs.keys() == other.inputs.keys()
        assert all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)


def test_memory_of_the_copy_stream_is_kept_until_the_computing_stream_is_done(
    on_this_device: dict[str, list[Any]],
) -> None:
    count = len(batches(images(), augment=AUGMENT, to_gpu=True, prefetch=2))
    stream = on_this_device["recorded"][0][1]
    assert len(stream.waited_for) == len(set(stream.waited_for)) == count  # each batch has an event of its own
    assert len(on_this_device["recorded"]) == 3 * count  # pixels, targets, draws
    assert {id(one) for one, _ in on_this_device["recorded"]} == {id(one) for one in on_this_device["sent"]}


def test_a_batch_that_waits_on_the_host_is_sent_anew_each_time_that_its_inputs_are_read(
    on_this_device: dict[str, list[Any]],
) -> None:
    one, *_ = batches(images(), augment=AUGMENT, to_gpu=True, keeps_steps=True)
    assert on_this_device["recorded"] == []
    assert any(one.targets is tensor for tensor in on_this_device["sent"])  # the host can look at it
    assert torch.equal(one.inputs, one.inputs)
    assert len(on_this_device["recorded"]) == 2 * 3


@pytest.mark.parametrize("keeps_steps", [False, True])
def test_a_placeholder_of_samples_that_cannot_be_loaded_has_no_draws(
    on_this_device: dict[str, list[Any]], keeps_steps: bool
) -> None:
    dataset = images()
    dataset._bad = {int(one): "torn" for one in ORDER.ids(5, 3)}  # a whole micro-batch, and half of the next one
    found = batches(dataset, augment=AUGMENT, to_gpu=True, skips=True, prefetch=2, keeps_steps=keeps_steps)
    assert found[0].is_placeholder
    on_host = batches(dataset, augment=AUGMENT, skips=True)
    assert [one.is_placeholder for one in found] == [one.is_placeholder for one in on_host]
    full = [place for place, one in enumerate(found) if not one.is_placeholder]
    assert_equal([found[place] for place in full], [on_host[place] for place in full])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_it_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no CUDA GPU here"):
        MicroBatchLoader(images(), ORDER, PLAN, 0, to_gpu=True)
