"""Torch's switches for kernels are those of a run while it lasts, and a second run finds them as they were."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest
import torch

from largebatch.distributed.kernels import WORKSPACE, KernelSwitches, lacks_deterministic_kernel


def flags() -> dict[str, Any]:
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "only warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "matmul tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn tf32": torch.backends.cudnn.allow_tf32,
    }


def fails_in(switches: KernelSwitches) -> dict[str, Any]:
    """The flags inside, left by an error."""
    inside: dict[str, Any] = {}
    with contextlib.suppress(KeyError), switches.set():
        inside = flags()
        raise KeyError
    return inside


@pytest.mark.parametrize("before", [False, True])
def test_the_switches_of_a_run_are_put_back_also_after_an_error(before: bool):
    torch.use_deterministic_algorithms(before, warn_only=before)
    found = flags()
    assert fails_in(KernelSwitches(tf32=True, deterministic=True, cudnn_benchmark=True)) == {
        "deterministic": True, "only warns": False, "benchmark": True, "matmul tf32": True, "cudnn tf32": True,
    }  # fmt: skip
    assert flags() == found
    assert fails_in(KernelSwitches(deterministic=False)) == found | {"deterministic": False, "only warns": False}
    assert flags() == found
    torch.use_deterministic_algorithms(False)


def test_switches_that_are_left_open_stay_as_a_program_has_set_them():
    torch.use_deterministic_algorithms(True)
    found = flags()
    with KernelSwitches().set():
        assert flags() == found
    torch.use_deterministic_algorithms(False)


def test_cublas_gets_its_workspace_on_a_gpu_alone_and_keeps_one_that_is_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    with KernelSwitches(deterministic=True).set():
        assert WORKSPACE not in os.environ
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with KernelSwitches(cudnn_benchmark=False).set():
        assert WORKSPACE not in os.environ
    with KernelSwitches(deterministic=True).set():
        assert os.environ[WORKSPACE] == ":4096:8"
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with KernelSwitches(deterministic=True).set():
        assert os.environ[WORKSPACE] == ":16:8"
    monkeypatch.delenv(WORKSPACE)


def test_an_operation_without_a_deterministic_kernel_is_recognised():
    """By what torch itself raises."""
    with KernelSwitches(deterministic=True).set(), pytest.raises(RuntimeError) as caught:
        torch.zeros(4).put_(torch.tensor([0]), torch.tensor([1.0]), accumulate=False)
    assert lacks_deterministic_kernel(caught.value)
    assert not lacks_deterministic_kernel(RuntimeError("CUDA out of memory"))
