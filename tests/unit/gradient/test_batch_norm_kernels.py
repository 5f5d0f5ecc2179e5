"""Batch norm of a micro-batch by the kernels of CUDA, with torch's four operations written out in their place."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.diagnostics.memory.live_bytes import LiveBytes
from largebatch.distributed.runtime import Runtime
from largebatch.gradient import batch_norm_kernels as kernels
from largebatch.gradient.exact_batch_norm import ExactBatchNorm, global_moments

KERNELS = ("batch_norm_stats", "batch_norm_elemt", "batch_norm_backward_reduce", "batch_norm_backward_elemt")
SHAPES = [(7, 3), (5, 3, 4), (4, 3, 5, 2), (2, 3, 2, 3, 2)]


def channels(values: Tensor) -> Tensor:
    """[channels, everything else], in float64."""
    return values.double().transpose(0, 1).flatten(1)


def shaped(values: Tensor, like: Tensor) -> Tensor:
    rows = values.view(like.shape[1], like.shape[0], *like.shape[2:]).transpose(0, 1)
    return torch.empty_like(like).copy_(rows)


class OnCuda:
    """What the kernels of torch compute, and how they are called: `aten/src/ATen/native/cuda/Normalization.cuh`."""

    def batch_norm_stats(self, input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        rows = channels(input)
        return self._wide(input, rows.mean(1)), self._wide(input, (rows.var(1, correction=0) + eps).rsqrt())

    def batch_norm_elemt(
        self, input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
    ) -> Tensor:
        rows = (channels(input) - mean[:, None]) * invstd[:, None]
        rows = rows * (1 if weight is None else weight[:, None]) + (0 if bias is None else bias[:, None])
        return shaped(rows, input)

    def batch_norm_backward_reduce(
        self, grad_out: Tensor, input: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None,
        input_g: bool, weight_g: bool, bias_g: bool,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        self._require_dense(grad_out, input)
        grad, centred = channels(grad_out), channels(input) - mean[:, None]
        sums = self._wide(input, grad.sum(1)), self._wide(input, (grad * centred).sum(1))
        return *(sums if input_g else (None, None)), None, None

    def batch_norm_backward_elemt(
        self, grad_out: Tensor, input: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, sum_dy: Tensor,
        sum_dy_xmu: Tensor, count: Tensor,
    ) -> Tensor:  # fmt: skip
        self._require_dense(grad_out, input)
        assert count.dtype == torch.int32
        grad, centred = channels(grad_out), channels(input) - mean[:, None]
        projected = centred * invstd[:, None].square() * (sum_dy_xmu / count.sum())[:, None]
        rows = (grad - (sum_dy / count.sum())[:, None] - projected) * invstd[:, None]
        return shaped(rows * (1 if weight is None else weight[:, None]), input)

    @staticmethod
    def _wide(input: Tensor, values: Tensor) -> Tensor:
        return values.to(torch.promote_types(input.dtype, torch.float32))

    @staticmethod
    def _require_dense(*values: Tensor) -> None:
        formats = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
        assert any(all(one.is_contiguous(memory_format=format) for one in values) for format in formats)


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has CPU tensors go the way of CUDA."""
    torch_as_there = OnCuda()
    for name in KERNELS:
        arguments = [one.name for one in getattr(torch.ops.aten, name).default._schema.arguments]
        written_out = getattr(torch_as_there, name)
        assert list(written_out.__code__.co_varnames[1 : 1 + len(arguments)]) == arguments
        monkeypatch.setattr(torch, name, written_out)
    monkeypatch.setattr(kernels, "_has_kernels", lambda _: True)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("on_cuda")
def test_three_micro_batches_on_cuda_have_outputs_and_gradients_of_one_big_batch(
    shape: tuple[int, ...], affine: bool
) -> None:
    torch.manual_seed(0)
    norm = (nn.BatchNorm1d if len(shape) < 4 else nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm3d)(
        3, affine=affine, dtype=torch.float64
    )
    whole = torch.randn(3 * shape[0], *shape[1:], dtype=torch.float64) * 3 + 5
    grad = torch.randn_like(whole)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    parameters = [one.detach().clone().requires_grad_() for one in norm.parameters()]
    truth = whole.clone().requires_grad_()
    expected = F.batch_norm(truth, None, None, *(parameters or (None, None)), training=True, eps=norm.eps)
    expected.backward(grad)

    parts = [part.clone().requires_grad_() for part in whole.split([1, shape[0], 2 * shape[0] - 1])]
    parts[1] = parts[1].detach().to(memory_format=_format(shape)).requires_grad_()
    with Runtime.open(precision="fp64") as runtime:
        outputs = torch.cat(ExactBatchNorm(runtime, norm).forward_all([lambda part=part: norm(part) for part in parts]))
    outputs.backward(grad)
    found = [torch.cat([part.grad for part in parts]), *(one.grad for one in norm.parameters())]
    for ours, theirs in zip([outputs, *found], [expected, truth.grad, *(one.grad for one in parameters)], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def _format(shape: tuple[int, ...]) -> torch.memory_format:
    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape), torch.contiguous_format)


@pytest.mark.usefixtures("on_cuda")
def test_bfloat16_activations_on_cuda_are_never_copied_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def watched(kernel: Any, *arguments: Any) -> Any:
        seen.extend(one.dtype for one in arguments if isinstance(one, Tensor) and one.dim() > 1)
        return kernel(*arguments)

    for name in KERNELS:
        monkeypatch.setattr(torch, name, functools.partial(watched, getattr(torch, name)))
    norm = nn.BatchNorm2d(3)
    inputs = torch.randn(4, 3, 5, 5).bfloat16().requires_grad_()
    with Runtime.open() as runtime, torch.autograd.graph.saved_tensors_hooks(_require_not_wide, lambda one: one):
        (outputs,) = ExactBatchNorm(runtime, norm).forward_all([lambda: norm(inputs)])
    outputs.backward(torch.ones_like(outputs))
    assert set(seen) == {torch.bfloat16}
    assert len(seen) == 1 + 1 + 2 + 2
    assert inputs.grad is not None
    assert inputs.grad.dtype == torch.bfloat16


class ShapesOnly(OnCuda):
    """Results of the kernels without the working memory that writing them out takes."""

    def batch_norm_stats(self, input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return torch.zeros(input.shape[1]), torch.ones(input.shape[1])

    def batch_norm_elemt(self, input: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(input)

    def batch_norm_backward_reduce(self, grad_out: Tensor, input: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return torch.zeros(input.shape[1]), torch.zeros(input.shape[1]), None, None

    def batch_norm_backward_elemt(self, grad_out: Tensor, input: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(input)


def test_two_micro_batches_on_cuda_take_memory_for_outputs_and_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_has_kernels", lambda _: True)
    for name in KERNELS:
        monkeypatch.setattr(torch, name, getattr(ShapesOnly(), name))
    norm = nn.BatchNorm2d(4)
    parts = [torch.zeros(2, 4, 64, 64, dtype=torch.bfloat16).requires_grad_() for _ in range(2)]
    grads = [torch.zeros_like(part) for part in parts]
    one, small = parts[0].nbytes, 4096  # statistics
    with Runtime.open() as runtime, LiveBytes() as memory:
        outputs = ExactBatchNorm(runtime, norm).forward_all([lambda part=part: norm(part) for part in parts])
        assert 2 * one <= memory.peak <= 2 * one + small
        torch.autograd.backward(outputs, grads)
    assert memory.peak <= 4 * one + small, "outputs, which are still held, and gradients of the inputs"


def _require_not_wide(saved: Tensor) -> Tensor:
    assert saved.dim() < 2 or saved.dtype == torch.bfloat16
    return saved


class TwoRanks:
    """A job of which the other rank has nothing to add."""

    world_size = 2

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def sum_in_place(self, values: Tensor) -> None:
        self.sizes.append(values.numel())


@pytest.mark.parametrize(
    ("dtype", "ratio", "tolerance", "sizes"),
    [(torch.float32, 1e4, 1e-7, [2 * 6 + 1]), (torch.float64, 1e6, 1e-10, [6 + 1, 6])],
)
def test_moments_of_channels_far_from_zero_lose_no_digits_that_activations_have(
    dtype: torch.dtype, ratio: float, tolerance: float, sizes: list[int]
) -> None:
    """Truth in extended precision; float32 has lost 1e-5 of such a variance itself, (1e4 x 2^-24)^2."""
    torch.manual_seed(1)
    counts = [3, 70, 20, 11]
    means = [(ratio + torch.randn(6, dtype=torch.float64)).to(dtype) for _ in counts]
    variances = [torch.rand(6, dtype=torch.float64).to(dtype) for _ in counts]
    job: Any = TwoRanks()
    count, mean, squares = global_moments(job, counts, means, variances, in_float64=dtype == torch.float64)
    assert job.sizes == sizes

    weights = np.array(counts, dtype=np.longdouble)[:, None]
    wide_means, wide_variances = (torch.stack(one).double().numpy().astype(np.longdouble) for one in (means, variances))
    middle = (weights * wide_means).sum(0) / weights.sum()
    truth = (weights * (wide_variances + (wide_means - middle) ** 2)).sum(0)
    assert float(count) == sum(counts)
    np.testing.assert_allclose(mean.numpy(), middle.astype(float), rtol=1e-15)
    np.testing.assert_allclose(squares.numpy(), truth.astype(float), rtol=tolerance)


def test_a_constant_channel_far_from_zero_has_no_negative_variance() -> None:
    job: Any = TwoRanks()
    means = [torch.full((4,), 1e6 / 3), torch.full((4,), 1e6 / 3)]
    _, _, squares = global_moments(job, [7, 12], means, [torch.zeros(4)] * 2, in_float64=False)
    assert (squares >= 0).all()
