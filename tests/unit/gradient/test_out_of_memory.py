"""What a shortage of memory is, and room for ranks to tell each other of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.runtime import Runtime
from largebatch.gradient import out_of_memory
from largebatch.gradient.out_of_memory import IfItFits, MicroBatchTooLargeError, is_out_of_memory
from largebatch.gradient.step import Step

SHORT = [
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB.",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call.",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "NCCL error: unhandled cuda error, NCCL version 2.27.3\nncclUnhandledCudaError: Call to CUDA function failed.\n"
    "Last error:\nCuda failure 2 'out of memory'",
    "NCCL WARN Cuda failure 'out of memory'",
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
]
OTHER = [
    "CUDA error: device-side assert triggered",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
    "Last error:\nCuda failure 1 'invalid argument'",
]


def test_a_shortage_is_told_from_other_errors():
    assert [text for text in SHORT if not is_out_of_memory(RuntimeError(text))] == []
    assert [text for text in OTHER if is_out_of_memory(RuntimeError(text))] == []
    assert not is_out_of_memory(ValueError(SHORT[0])), "errors of programs are not those of libraries"


def test_ranks_have_room_to_tell_each_other_of_a_shortage(monkeypatch):
    """When they meet, neither gradients nor the reserve are in memory; the next try has a reserve again."""
    model, met = nn.Linear(2, 2), []
    step = Step(1, 0, BatchPlan.solve(global_batch_size=2, world_size=1), lr=0.1, random_key=0)

    class Local:
        loss, is_joint, fails = None, False, True

        def __call__(self, *_: Any) -> torch.Tensor:
            loss = model(torch.ones(2, 2)).sum()
            loss.backward()
            assert passes._reserve is not None
            if self.fails:
                raise torch.OutOfMemoryError("out of memory.")
            return loss.detach()

    def gathered(_: Runtime, values: list[float]) -> list[list[float]]:
        met.append((passes._reserve is not None, model.weight.grad is not None))
        return [values]

    monkeypatch.setattr(out_of_memory, "gather_floats", gathered)
    with Runtime.open() as runtime:
        passes = IfItFits(runtime, model, Local())
        with pytest.raises(MicroBatchTooLargeError):
            passes(step, iter(()), 1.0, None)
        Local.fails = False
        passes(step, iter(()), 1.0, None)
    assert met == [(False, False), (True, True)]
