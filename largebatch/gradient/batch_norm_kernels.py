"""What batch norm computes of one micro-batch: by torch's synchronised batch norm on CUDA, by ATen elsewhere.

The kernels of CUDA read bfloat16 and float16 activations as they are and write results in the same type: no float32
copy of them exists. All statistics are [channels], in float32, or in float64 for activations in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_CHANNELS_LAST = (torch.channels_last, torch.channels_last_3d)


@dataclass(frozen=True)
class Statistics:
    """What inputs are normalised by.

    Attributes:
        mean, variance: of each channel, over all inputs.
        rate: 1 / sqrt(variance + eps).
        eps: of the batch norm.
    """

    mean: Tensor
    variance: Tensor
    rate: Tensor
    eps: float


def moments(inputs: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and variance (divided by n) of each channel of inputs [n, channels, ...]."""
    if not _has_kernels(inputs):
        variance, mean = torch.var_mean(inputs.to(wide_type(inputs)), dim=_all_but_channels(inputs), correction=0)
        return mean, variance
    mean, rate = torch.batch_norm_stats(_dense(inputs, inputs), eps)
    # In float64, where this undoes the kernel's last operation without an error of its own.
    return mean, (rate.double().pow(-2) - eps).clamp(min=0)


def normalise(inputs: Tensor, of: Statistics, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """(inputs - mean) rate weight + bias, in the type of the inputs."""
    if not _has_kernels(inputs):
        return F.batch_norm(inputs, of.mean, of.variance, weight, bias, training=False, eps=of.eps)
    return torch.batch_norm_elemt(_dense(inputs, inputs), weight, bias, of.mean, of.rate, of.eps)


def gradient_sums(grad: Tensor, inputs: Tensor, of: Statistics) -> Tensor:
    """Sums of grad and of grad x normalised inputs over each channel, [2, channels].

    They are the gradients of bias and weight. `grad` is that of the outputs.
    """
    if not _has_kernels(inputs):
        wide = grad.to(of.mean.dtype), inputs.to(of.mean.dtype)
        _, with_inputs, alone = torch.ops.aten.native_batch_norm_backward(
            *wide, None, of.mean, of.variance, None, None, False, of.eps, [False, True, True]
        )
        return torch.stack([alone, with_inputs])
    alone, with_centred, _, _ = torch.batch_norm_backward_reduce(
        _dense(grad, inputs), _dense(inputs, inputs), of.mean, of.rate, None, True, False, False
    )
    return torch.stack([alone, with_centred * of.rate])


def input_gradient(grad: Tensor, inputs: Tensor, of: Statistics, weight: Tensor | None, means: Tensor) -> Tensor:
    """Gradient of the inputs, in their type: rate weight (grad - means[0] - normalised inputs x means[1]).

    Args:
        grad: of the outputs.
        inputs: that were normalised.
        of: what they were normalised by.
        weight: of the batch norm.
        means: `gradient_sums` of all inputs of the global batch, over their number per channel.
    """
    weight = None if weight is None else weight.to(of.mean.dtype)
    if not _has_kernels(inputs):
        scale = of.rate if weight is None else of.rate * weight
        wide, (alone, with_inputs) = inputs.to(of.mean.dtype), -scale * means
        result = F.batch_norm(wide, of.mean, of.variance, with_inputs, alone, training=False, eps=of.eps)
        return result.addcmul_(grad.to(wide.dtype), _per_channel(scale, inputs)).to(inputs.dtype)
    once = torch.ones(1, dtype=torch.int32, device=inputs.device)
    arguments = of.mean, of.rate, weight, means[0], means[1] / of.rate, once
    return torch.batch_norm_backward_elemt(_dense(grad, inputs), _dense(inputs, inputs), *arguments)


def wide_type(inputs: Tensor) -> torch.dtype:
    """The type of the statistics of `inputs`."""
    return torch.promote_types(inputs.dtype, torch.float32)


def _has_kernels(inputs: Tensor) -> bool:
    """Whether torch has the kernels of synchronised batch norm where the inputs are."""
    return inputs.is_cuda


def _dense(values: Tensor, like: Tensor) -> Tensor:
    """In the memory format of `like`, so that the kernels walk through both in one order; copies only if it must."""
    for memory_format in _CHANNELS_LAST:
        if like.is_contiguous(memory_format=memory_format):
            return values.contiguous(memory_format=memory_format)
    return values.contiguous()


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (like.dim() - 2))


def _all_but_channels(inputs: Tensor) -> list[int]:
    return [dim for dim in range(inputs.dim()) if dim != 1]
