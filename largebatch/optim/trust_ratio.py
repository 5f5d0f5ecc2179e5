"""The trust ratio that LARS and LAMB share: how long a step a tensor of this norm may take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def trust_ratio(
    weight_norm: Tensor, direction_norm: Tensor, *, coefficient: float = 1.0, weight_decay: float = 0.0
) -> Tensor:
    """Factor that makes a step proportional to the norm of the weights it changes.

        ratio = coefficient |w| / (|d| + weight_decay |w|)     1 where |w| = 0 or |d| = 0

    LARS: d is the gradient and `coefficient` the trust coefficient. LAMB: d is the whole update, decay included, and
    both arguments keep their defaults.

    Args:
        weight_norm: |w|, any shape: one entry per tensor.
        direction_norm: |d|, of the same shape.
        coefficient: length of the step relative to |w|.
        weight_decay: the decay that the direction does not contain yet.

    Returns:
        Ratios, shaped like the norms, on their device: nothing waits for the device.

    >>> trust_ratio(torch.tensor([5.0, 5.0, 0.0]), torch.tensor([2.0, 0.0, 2.0]), coefficient=0.1, weight_decay=0.1)
    tensor([0.2000, 1.0000, 1.0000])
    """
    ratio = coefficient * weight_norm / (direction_norm + weight_decay * weight_norm)
    # Ratio 1, not 0: a zero-initialised layer must be able to leave zero.
    return torch.where((weight_norm == 0) | (direction_norm == 0), 1.0, ratio)


def l2_norm(tensor: Tensor) -> Tensor:
    """L2 norm of all elements, a tensor of shape [] and the dtype of `tensor`.

    Rows first: on a CPU torch adds the squares of a whole float32 tensor one after the other, which is off by 2e-4 at
    8 million elements; norms of the norms of rows keep the error near 1e-7 and cost no more.
    """
    return torch.linalg.vector_norm(torch.linalg.vector_norm(tensor, dim=-1))


def l2_norms(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm of each tensor, shape [len(tensors)]; all tensors have one device and one dtype."""
    if tensors[0].device.type == "cpu":
        return torch.stack([l2_norm(tensor) for tensor in tensors])
    return torch.stack(torch._foreach_norm(list(tensors)))
