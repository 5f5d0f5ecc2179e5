"""LARS and LAMB on a real GPU, by Triton's kernels: what `test_triton` shows in the interpreter, there again.

python -m pytest tests/unit/optim/test_cuda.py
largebatch bench optim device=cuda shapes=resnet50,bert_base rounds=100
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from largebatch.experiments.bench.optimizer_race import peak_extra_bytes
from tests.unit.optim.forms import (
    CLASSES,
    FORMS,
    assert_true_at_every_step,
    both,
    every_form,
    everything,
    make_params,
    stepped,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU for CUDA here")


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    """New tensors lie there."""
    with torch.device("cuda"):
        yield


def moved_to_the_gpu(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    with torch.device("cpu"):
        params = make_params(dtype)
    return [torch.nn.Parameter(param.detach().cuda()) for param in params]


def results(optimizer_class: type, dtype: torch.dtype, **options: object) -> list[torch.Tensor]:
    """Weights and state after four steps; 11,000 elements in seven tensors, up to three chunks each."""
    params = moved_to_the_gpu(dtype)
    optimizer = optimizer_class(params, lr=0.03, weight_decay=0.05, **options)
    generator = torch.Generator("cuda").manual_seed(0)
    for _ in range(4):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(dtype)
        optimizer.step()
    return everything(optimizer, params)


@every_form
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["64", "32"])
def test_every_step_equals_the_reference(name, form, dtype):
    assert_true_at_every_step(name, form, dtype, {"compile": True})


@both
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 2.0**-7)]
)
def test_ragged_sizes_equal_the_loop(optimizer_class, dtype, tolerance):
    ours, loop = (results(optimizer_class, dtype, **path) for path in ({"compile": True}, {"foreach": False}))
    for one, other in zip(ours, loop, strict=True):
        scale = float(other.abs().max()) if other.numel() else 1.0
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * scale)


@both
def test_the_same_bits_come_out_every_time(optimizer_class):
    first, second = (results(optimizer_class, torch.float32, compile=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@every_form
def test_no_step_waits_for_the_device(name, form):
    params = moved_to_the_gpu(torch.float32)
    optimizer = CLASSES[name](params, lr=0.1, compile=True, **FORMS[name, form])
    for number in range(3):
        for param in params:
            param.grad = torch.ones_like(param)
        if number:  # the first one compiles
            torch.cuda.set_sync_debug_mode("error")
        try:
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (number + 1)
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@both
def test_a_step_needs_less_than_one_percent_of_the_parameters_as_temporary_memory(optimizer_class):
    param = torch.nn.Parameter(torch.randn(4000, 5000))
    param.grad = torch.randn_like(param)
    optimizer = optimizer_class([param], lr=1e-3, compile=True)
    optimizer.step()
    assert peak_extra_bytes(optimizer.step, "cuda") < 0.01 * 4 * param.numel()


@both
def test_parameters_on_a_cpu_and_on_a_gpu_share_a_group(optimizer_class):
    def values(**path: object) -> list[torch.Tensor]:
        with torch.device("cpu"):
            params = make_params()
        params = [torch.nn.Parameter(param.detach().cuda()) if at % 2 else param for at, param in enumerate(params)]
        stepped(optimizer_class, params, **path)
        return [param.detach().cpu() for param in params]

    with torch.device("cpu"):
        for one, other in zip(values(compile=True), values(foreach=False), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
