"""The noise of one step from gradients of micro-batches that are taken one by one: what a tracker must measure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def noise_by_hand(
    model: nn.Module, micro_batches: Sequence[Any], loss_of: Callable[[nn.Module, Any], Tensor], sizes: Sequence[int],
    reduction: str = "mean",
) -> tuple[float, float, float]:  # fmt: skip
    """(|g|, tr(Sigma), |G|^2): the two unknowns of E|g_i|^2 = |G|^2 + tr/b_i, E|g|^2 = |G|^2 + tr sum_i w_i^2/b_i.

    `loss_of` is the mean loss of a micro-batch; `reduction`: whether micro-batches weigh alike or by their samples.
    """
    model = copy.deepcopy(model)
    parameters = [one for one in model.parameters() if one.requires_grad]
    grads = []
    for micro_batch in micro_batches:
        slopes = torch.autograd.grad(loss_of(model, micro_batch), parameters, materialize_grads=True)
        grads.append(torch.cat([one.flatten() for one in slopes]).double())
    counts = np.array(sizes)
    weights = counts / counts.sum() if reduction == "sum" else np.full(len(counts), 1 / len(counts))
    whole = float(sum(weight * grad for weight, grad in zip(weights, grads, strict=True)).square().sum())
    parts = float(sum(weight * grad.square().sum() for weight, grad in zip(weights, grads, strict=True)))
    equations = np.array([[1, (weights / counts).sum()], [1, (weights**2 / counts).sum()]])
    grad_sq_norm, trace = np.linalg.solve(equations, [parts, whole])
    return whole**0.5, trace, grad_sq_norm
