"""The trust ratio that LARS and LAMB share: how long a step a tensor of this norm may take."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from largebatch.optim.state import same_kind, wide_dtype

_ROW = 4096


def trust_ratio(
    weight_norm: Tensor,
    direction_norm: Tensor,
    *,
    coefficient: float = 1.0,
    weight_decay: float = 0.0,
    eps: float = 0.0,
    norm_bounds: Sequence[float] | None = None,
    at_most: float | None = None,
) -> Tensor:
    """Factor that makes a step proportional to the norm of the weights it changes.

        ratio = coefficient phi(|w|) / (|d| + weight_decay |w| + eps)     1 where phi(|w|) = 0 or |d| = 0
        phi(z) = min(max(z, lower), upper), z itself without bounds

    LARS: d is the gradient and `coefficient` the trust coefficient. LAMB: d is the whole update, decay included, and
    the arguments keep their defaults. The rest is for the variants of both.

    Args:
        weight_norm: |w|, any shape: one entry per tensor.
        direction_norm: |d|, of the same shape.
        coefficient: length of the step relative to |w|.
        weight_decay: the decay that the direction does not contain yet.
        eps: added to the denominator.
        norm_bounds: (lower, upper) of phi.
        at_most: the largest ratio.

    Returns:
        Ratios, shaped like the norms, on their device: nothing waits for the device.

    >>> trust_ratio(torch.tensor([5.0, 5.0, 0.0]), torch.tensor([2.0, 0.0, 2.0]), coefficient=0.1, weight_decay=0.1)
    tensor([0.2000, 1.0000, 1.0000])
    >>> trust_ratio(torch.tensor([5.0, 0.0]), torch.tensor([2.0, 2.0]), norm_bounds=(1.0, 3.0))
    tensor([1.5000, 0.5000])
    """
    scale = weight_norm if norm_bounds is None else weight_norm.clamp(*norm_bounds)
    denominator = direction_norm + weight_decay * weight_norm
    if eps != 0:
        denominator = denominator + eps
    ratio = coefficient * scale / denominator
    if at_most is not None:
        ratio = ratio.clamp(max=at_most)
    # Ratio 1, not 0: a zero-initialised layer must be able to leave zero.
    return torch.where((scale == 0) | (direction_norm == 0), 1.0, ratio)


@dataclass(frozen=True)
class TrustRatio:
    """The options of `trust_ratio` for all tensors of a group, with their meaning there."""

    coefficient: float = 1.0
    weight_decay: float = 0.0
    eps: float = 0.0
    norm_bounds: Sequence[float] | None = None
    at_most: float | None = None

    def of_tensors(self, weight_norm: Tensor, direction_norm: Tensor) -> Tensor:
        """`trust_ratio` with these options."""
        return trust_ratio(weight_norm, direction_norm, **vars(self))

    def of_numbers(self, weight_norm: float, direction_norm: float) -> float:
        """`trust_ratio` of Python numbers: a hundred times as fast as on tensors of one element.

        >>> TrustRatio(0.1, weight_decay=0.1).of_numbers(5.0, 2.0), TrustRatio().of_numbers(5.0, 0.0)
        (0.2, 1.0)
        """
        bounds = self.norm_bounds
        scale = weight_norm if bounds is None else min(max(weight_norm, bounds[0]), bounds[1])
        if scale == 0 or direction_norm == 0:
            return 1.0
        ratio = self.coefficient * scale / (direction_norm + self.weight_decay * weight_norm + self.eps)
        return ratio if self.at_most is None else min(ratio, self.at_most)


def l2_norm(tensor: Tensor) -> Tensor:
    """L2 norm of all elements, a tensor of shape [] and the dtype of `tensor`.

    Rows first: on a CPU torch adds the squares of a whole float32 tensor one after the other, which is off by 2e-4 at
    8 million elements; norms of the norms of rows of 4096 keep the error below 1e-6. Rows are cut from memory as it
    lies there: along a dimension of the tensor they can be as short as the 3 weights of a kernel, 30 times as slow.
    """
    num_rows, rest = divmod(tensor.numel(), _ROW)
    if num_rows == 0 or (num_rows, rest) == (1, 0) or not tensor.is_cpu:
        return torch.linalg.vector_norm(tensor)
    flat = _in_memory_order(tensor).reshape(-1)
    rows = torch.linalg.vector_norm(flat[: num_rows * _ROW].view(num_rows, _ROW), dim=1)
    return l2_norm(torch.cat([rows, flat[num_rows * _ROW :]]) if rest else rows)


def _in_memory_order(tensor: Tensor) -> Tensor:
    """The tensor with its dimensions from the largest stride to the smallest (channels last, transposed)."""
    if tensor.is_contiguous():
        return tensor
    return tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))


def l2_norms(tensors: Sequence[Tensor], *, dtype: torch.dtype | None = None) -> Tensor:
    """L2 norm of each tensor, shape [len(tensors)]; all tensors have one device and one dtype. Computed in `dtype`."""
    if tensors[0].device.type == "cpu":
        return torch.stack([l2_norm(tensor.to(dtype or tensor.dtype)) for tensor in tensors])
    return torch.stack(torch._foreach_norm(list(tensors), 2, dtype))


def global_l2_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm of all elements of all tensors, whatever their dtypes and devices; shape [], float32 or wider.

    It lies on the device of the first tensor, and nothing waits for a device there.
    """
    dtype = functools.reduce(torch.promote_types, map(wide_dtype, tensors))
    norms = [l2_norms(same, dtype=dtype) for (same,) in same_kind(tensors)]
    return torch.linalg.vector_norm(torch.cat([part.to(tensors[0].device, non_blocking=True) for part in norms]))
