"""The noise of one optimizer step, from norms of micro-batch gradients that lie on several ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from largebatch.diagnostics.noise.noise_scale import moments_of_step
from largebatch.diagnostics.noise.passes import BackwardPasses, Problem, norm_of, sq_sum
from largebatch.distributed.pending_sum import PendingSum
from largebatch.distributed.sending import sent

Reduction = Literal["mean", "sum"]

_PROBLEMS = tuple(Problem)
_COUNTS = 7
# bfloat16 on the way between ranks loses 2^-9 of each number.
_MOST_APART = 0.02


@dataclass(frozen=True)
class MeasuredStep:
    """The gradient of one step and its noise, in units of the loss that `backward` was called on, without `scaler`.

    Attributes:
        num_micro_batches: backward passes, of all ranks.
        num_samples: their samples.
        grad_norm: norm of the gradient of the global batch, before clipping.
        micro_batch_norms: norm of the mean gradient of each micro-batch of this rank.
        trace: unbiased tr(Sigma) of this step.
        grad_sq_norm: unbiased |G|^2 of this step; may be negative.
    """

    num_micro_batches: int
    num_samples: int
    grad_norm: float
    micro_batch_norms: tuple[float, ...]
    trace: float
    grad_sq_norm: float


@dataclass(frozen=True)
class StepSums:
    """What a rank adds to the sums over ranks.

    Attributes:
        values: [problems; counts and sums; probed elements of the passes' sum and of `.grad`], float64.
        sizes: samples of each pass of this rank.
        sq_norms: squared norm of the gradient that each added, [passes].
        reduction: of the loss of a micro-batch.
        world_size: ranks.
    """

    values: Tensor
    sizes: tuple[int, ...]
    sq_norms: Tensor
    reduction: Reduction
    world_size: int

    @classmethod
    def of(cls, passes: BackwardPasses, reduction: Reduction, world_size: int) -> StepSums:
        """Of the passes of a rank; the host waits for no device."""
        device = passes.parameters[0].device
        like = torch.zeros((), dtype=torch.float64, device="cpu" if device.type == "mps" else device)  # mps has none
        gradients = [one.grad for one in passes.parameters]
        if any(one is not None and one.layout != torch.strided for one in gradients):
            passes.problems.add(Problem.SPARSE)
            gradients = [None] * len(gradients)
        whole = sq_sum([norm_of(one) for one in gradients if one is not None]).to(like)
        sizes = torch.tensor(passes.sizes, dtype=torch.float64)
        counts = [len(sizes), len(sizes) ** 2, float(sizes.sum()), float((1 / sizes).sum())]
        known = torch.tensor([*(float(one in passes.problems) for one in _PROBLEMS), *counts], dtype=torch.float64)
        sq_norms = passes.sq_norms(like)
        of_passes = torch.stack([sq_norms.sum(), (sq_norms * sent(1 / sizes, like.device)).sum(), whole / world_size])
        probed = [passes.probe.added(like), passes.probe.of(gradients, like)]
        values = torch.cat([sent(known, like.device), of_passes, *probed])
        return cls(values, tuple(passes.sizes), sq_norms, reduction, world_size)


@dataclass(frozen=True)
class PendingStep:
    """A step whose sums may still be on their way between ranks.

    Attributes:
        own: of this rank.
        pending: the sums over ranks.
        loss_scale: of the loss.
    """

    own: StepSums
    pending: PendingSum
    loss_scale: float

    def result(self, training_set_size: int | None) -> MeasuredStep | Sequence[Problem]:
        """The measurement, or why there is none: alike on all ranks, but for `micro_batch_norms`."""
        values = np.array(self.pending.result())
        at, of_counts, probed = np.split(values, [len(_PROBLEMS), len(_PROBLEMS) + _COUNTS])
        n, n_sq, samples, inverse_sizes, sq_sum, sq_over_size, whole = of_counts.tolist()
        world_size, is_sum = self.own.world_size, self.own.reduction == "sum"
        if problems := [problem for problem, count in zip(_PROBLEMS, at, strict=True) if count]:
            return problems
        if n < 2:
            return [Problem.ONE_MICRO_BATCH]
        if not is_sum and n_sq * world_size != n**2:
            return [Problem.UNEQUAL_RANKS]
        if not np.isfinite(values).all():
            return [Problem.NOT_FINITE]
        factor = factor_between(*np.split(probed, 2), world_size=world_size)
        if factor is None:
            return [Problem.OTHER_GRADIENT]
        # A pass adds world_size w_i g_i to its rank's gradient, whose mean over ranks is g = sum_i w_i g_i.
        grad_sq_norm = whole / (factor * self.loss_scale) ** 2
        if is_sum:
            size, weighted = samples, sq_over_size * (samples / world_size) ** 2
        else:
            size, weighted = n**2 / inverse_sizes, sq_sum * n / inverse_sizes * (n / world_size) ** 2
        moments = moments_of_step(
            weighted / self.loss_scale**2,
            grad_sq_norm,
            num_micro_batches=round(n),
            global_batch_size=size,
            num_samples=training_set_size,
        )
        return MeasuredStep(round(n), round(samples), math.sqrt(grad_sq_norm), self._own_norms(n, samples), *moments)

    def _own_norms(self, num_micro_batches: float, num_samples: float) -> tuple[float, ...]:
        own = self.own
        units = [num_samples / size if own.reduction == "sum" else num_micro_batches for size in own.sizes]
        norms = own.sq_norms.sqrt().tolist()
        return tuple(norm * unit / own.world_size / self.loss_scale for norm, unit in zip(norms, units, strict=True))


def factor_between(added: np.ndarray, gradient: np.ndarray, *, world_size: int) -> float | None:
    """The factor by which a gradient is the mean over ranks of what was added; None if it is not.

    >>> factor_between(np.array([2.0, 4.0]), np.array([1.0, 2.0]), world_size=1)
    0.5
    >>> factor_between(np.array([2.0, 4.0]), np.array([1.0, 1.0]), world_size=1)

    Args:
        added: sum over ranks of the elements that passes added, [k].
        gradient: sum over ranks of the same elements of `.grad`, [k].
        world_size: ranks.
    """
    added, gradient = added / world_size, gradient / world_size
    square = float(added @ added)
    if square == 0:
        return None
    factor = float(added @ gradient) / square
    apart = float(np.linalg.norm(gradient - factor * added))
    return factor if factor > 0 and apart <= _MOST_APART * float(np.linalg.norm(gradient)) else None
