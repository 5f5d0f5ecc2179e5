"""What the harness claims of itself: each thing that it counts or refuses, in a few lines."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.device.conftest import FakeGpus
from tests.device.fake_cuda import ENOUGH_BEHIND, GPU


def kinds(waits: dict[str, int]) -> dict[str, int]:
    """Without the place, which must be this file."""
    assert all("tests/device/test_harness.py:" in name for name in waits)
    return Counter(name.partition(" at ")[0] for name in Counter(waits).elements())


def some(size: int = 4) -> torch.Tensor:
    return torch.zeros(size, device="cuda")


def each_wait() -> dict[str, int]:
    with GPU:
        x = some()
        x.sum().item()
        x.cpu()
        x.tolist()
        torch.ones(3).to("cuda")
        torch.tensor([1.0, 2.0], device="cuda")
        torch.ones(3).pin_memory().to("cuda")
        torch.cuda.synchronize()
        some()
        torch.cuda.current_stream().synchronize()
        torch.ones(3).pin_memory().to("cuda", non_blocking=True)  # no wait
        torch.empty(4, pin_memory=True).copy_(x, non_blocking=True)  # no wait
    return kinds(GPU.take().waits)


def test_every_kind_of_wait_is_counted(fake_gpus: FakeGpus):
    assert fake_gpus.call(each_wait, world_size=1) == {
        "item": 1,
        "copy to the host": 2,
        "copy of pageable memory to the device": 2,
        "blocking copy to the device": 1,
        "cuda.synchronize": 1,
        "stream.synchronize": 1,
    }


def read_after(kernels: int) -> tuple[int, int]:
    with GPU:
        x, event = some(), torch.cuda.Event()
        event.record()
        for _ in range(kernels):
            x.add_(1)
        event.synchronize()
    counts = GPU.take()
    return counts.waits.total(), counts.late_reads.total()


def test_an_event_is_read_late_when_the_device_has_enough_to_do(fake_gpus: FakeGpus):
    assert fake_gpus.call(read_after, ENOUGH_BEHIND - 1, world_size=1) == (1, 0)
    assert fake_gpus.call(read_after, ENOUGH_BEHIND, world_size=1) == (0, 1)


def problems_of(function: Callable[[], Any]) -> list[str]:
    if dist.is_available() and not dist.is_initialized():
        dist.init_process_group("nccl")
    with GPU:
        try:
            function()
        except RuntimeError:
            assert GPU.problems
    return GPU.problems


def mixes_devices() -> None:
    some() + torch.ones(4)


def reduces_on_the_host() -> None:
    dist.all_reduce(torch.ones(4))


def reads_too_early() -> None:
    host = torch.empty(4, pin_memory=True)
    host.copy_(some(), non_blocking=True)
    host.tolist()


def rewrites_too_early() -> None:
    host = torch.ones(4).pin_memory()
    host.to("cuda", non_blocking=True)
    host.fill_(2.0)


def uses_pinned_memory_in_order() -> None:
    host = torch.empty(4, pin_memory=True)
    host.copy_(some(), non_blocking=True)
    torch.cuda.current_stream().record_event().synchronize()
    host.tolist()
    host.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    host.fill_(2.0)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (mixes_devices, "Expected all tensors to be on the same device"),
        (reduces_on_the_host, "allreduce_ of a CPU tensor"),
        (reads_too_early, "pinned memory is read before the copy into it is known to have ended"),
        (rewrites_too_early, "pinned memory is written before the copy from it has surely ended"),
    ],
)
def test_a_problem_is_told_with_its_place(fake_gpus: FakeGpus, function: Callable[[], Any], found: str):
    (problem,) = fake_gpus.call(problems_of, function)
    assert found in problem
    assert f"tests/device/test_harness.py:{function.__name__}:" in problem


def test_pinned_memory_used_in_order_is_no_problem(fake_gpus: FakeGpus):
    assert fake_gpus.call(problems_of, uses_pinned_memory_in_order) == []


def memory_of_a_thread() -> tuple[int, int, int]:
    kept = []
    with GPU:
        thread = threading.Thread(target=lambda: kept.append(some(1024)))
        thread.start()
        thread.join()
        some(2048)
        return GPU.live, GPU.counts.peak, GPU.counts.kernels["zeros"]


def test_memory_is_followed_in_every_thread(fake_gpus: FakeGpus):
    assert fake_gpus.call(memory_of_a_thread, world_size=1) == (4096, 4096 + 8192, 2)
