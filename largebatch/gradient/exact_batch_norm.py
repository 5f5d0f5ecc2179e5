"""Batch norm over the whole global batch, on any number of ranks and micro-batches, with the gradient of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from largebatch.distributed.runtime import Runtime
from largebatch.gradient.lockstep import Lockstep, LockstepError


class ExactBatchNorm:
    """Gives every batch norm of a model, in training, the mean and variance of the whole global batch.

    The micro-batches of a rank run side by side in one thread each (`Lockstep`), up to their next batch norm. There
    each contributes its count, mean and sum of squared deviations; the rank combines them (Chan et al. 1979, pairwise
    update), a sum over ranks collects one row of each rank, and every micro-batch is normalised by the total. All of
    it is differentiable, and the backward pass goes through one graph of all micro-batches of the rank: a sample
    counts in the statistics that all others are normalised by, as in one big batch. Running statistics move once per
    step.

    It costs, per batch norm and step, a collective of 2 x channels + 1 float64 numbers per rank in the forward and one
    in the backward pass, and the activations of all micro-batches of the rank in memory at once: only the working
    memory of a layer is that of one micro-batch. No batch norm can be had for less: the statistics of a layer follow
    from those of the layers before it, and their gradients from those of the layers after.

    Args:
        runtime: the job.
        module: the unwrapped model. Its batch norms change for good: inside `forward_all` they do the above.

    Raises:
        ValueError: if there is no batch norm, or one with a `forward` of its own.
    """

    def __init__(self, runtime: Runtime, module: nn.Module) -> None:
        self._runtime = runtime
        self.norms = batch_norms(module)
        self._lockstep = Lockstep(runtime.device, self._combine)
        self._token: Tensor | None = None
        for norm in self.norms:
            norm.forward = self._forward_of(norm)  # type: ignore[method-assign, assignment]

    def forward_all(self, functions: Sequence[Callable[[], Any]]) -> list[Any]:
        """Call functions that run a micro-batch each through the model, with statistics over those of all ranks.

        Raises:
            ValueError: if micro-batches call different batch norms, or there is one value per channel in all.
        """
        self._token = torch.zeros((), dtype=torch.float64, device=self._runtime.device)
        try:
            return self._lockstep.run(functions)
        except LockstepError as error:
            raise ValueError(
                f"The micro-batches of a rank do not call the same batch norms in the same order: {error} With "
                "batch_norm=exact every sample must take the same way through the model."
            ) from None
        finally:
            self._token = None

    def _forward_of(self, norm: _BatchNorm) -> Callable[[Tensor], Tensor]:
        plain = norm.forward

        def forward(inputs: Tensor) -> Tensor:
            if not (norm.training and self._lockstep.is_inside):
                result: Tensor = plain(inputs)
                return result
            norm._check_input_dim(inputs)
            row = torch.cat(_Moments.apply(inputs))
            mean, variance = self._lockstep.exchange(norm, (_count(inputs), row))
            return _normalise(norm, inputs, mean, variance)

        return forward

    def _combine(self, norm: _BatchNorm, values: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
        """Mean and variance over the global batch from (count, row [2 channels + 1]) of this rank's micro-batches."""
        own = _total(torch.stack([row for _, row in values]))
        gathered, self._token = _Gather.apply(own, self._token, self._runtime)
        count, mean, squares = _split(_total(gathered))
        # Only where it can be: reading the count makes the host wait for the device.
        if sum(number for number, _ in values) <= 1 and float(count) <= 1:
            raise ValueError(
                "A batch norm got one value per channel from the whole global batch: its variance is not defined. Use "
                "a larger batch.total, or no batch norm there."
            )
        _update_running_statistics(norm, mean.detach(), (squares / (count - 1)).detach())
        return mean, squares / count


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch norms of a model.

    Raises:
        ValueError: if there is none, or one with a `forward` of its own.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    if not norms:
        raise ValueError("the model has no batch norm, so it would have no effect. Use batch_norm=per_micro_batch.")
    known = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    own = [type(norm).__name__ for norm in norms if type(norm).forward not in known]
    if own:
        raise ValueError(
            f"{own[0]} has a forward of its own, which may do more than batch norm. Use torch.nn.BatchNorm1d, "
            "BatchNorm2d or BatchNorm3d and put what else it does into a module behind it."
        )
    return norms


def _normalise(norm: _BatchNorm, inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    wide = torch.promote_types(inputs.dtype, torch.float32)
    result: Tensor = _Normalise.apply(inputs, mean.to(wide), variance.to(wide), norm.weight, norm.bias, norm.eps)
    return result


def _total(rows: Tensor) -> Tensor:
    """The moments of all rows together: [k, 2 channels + 1] -> [2 channels + 1], each row count, mean, squares."""
    counts, means, squares = _split(rows)
    count = counts.sum(dim=0)
    mean = (counts * means).sum(dim=0) / count
    return torch.cat([count, mean, squares.sum(dim=0) + (counts * (means - mean).square()).sum(dim=0)])


def _split(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count [..., 1], mean [..., channels] and sum of squared deviations [..., channels]."""
    channels = rows.shape[-1] // 2
    count, mean, squares = rows.split([1, channels, channels], dim=-1)
    return count, mean, squares


@torch.no_grad()
def _update_running_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """As torch does it after one big batch."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    weight = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    for statistic, value in ((norm.running_mean, mean), (norm.running_var, variance)):
        statistic.lerp_(value.to(statistic.dtype), weight)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (like.dim() - 2))


def _count(inputs: Tensor) -> int:
    """Values per channel."""
    return inputs.numel() // inputs.shape[1]


def _all_but_channels(inputs: Tensor) -> list[int]:
    return [dim for dim in range(inputs.dim()) if dim != 1]


class _Moments(torch.autograd.Function):
    """Count [1], mean [channels] and sum of squared deviations [channels] of inputs [n, channels, ...], in float64."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        count = _count(inputs)
        variance, mean = torch.var_mean(wide, dim=_all_but_channels(inputs), correction=0)
        ctx.save_for_backward(inputs, mean)
        ctx.count = count
        counts = torch.full((1,), count, dtype=torch.float64, device=inputs.device)
        ctx.mark_non_differentiable(counts)
        return counts, mean.double(), variance.double() * count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, grad_mean: Tensor, grad_squares: Tensor) -> Tensor:
        inputs, mean = ctx.saved_tensors
        centred = inputs - _per_channel(mean, inputs)
        grad = centred.mul_(_per_channel((2 * grad_squares).to(mean.dtype), inputs))
        grad += _per_channel((grad_mean / ctx.count).to(mean.dtype), inputs)
        return grad.to(inputs.dtype)


class _Gather(torch.autograd.Function):
    """Rows of all ranks [ranks, m], in their order; what they lead to on any rank flows back to the rank they are from.

    The token makes each call depend on the one before, so that the collectives of the backward pass come in reverse
    order on every rank: autograd alone does not promise an order between parallel branches of a model.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, token: Tensor, runtime: Runtime) -> tuple[Tensor, Tensor]:
        ctx.runtime = runtime
        ctx.set_materialize_grads(False)
        rows = own.new_zeros((runtime.world_size, len(own)))
        rows[runtime.rank] = own
        runtime.sum_in_place(rows)
        ctx.shape = rows.shape
        return rows, token.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor, None, None]:
        # Also for a norm that nothing depends on: whether a collective runs must not depend on the rank.
        total = torch.zeros(ctx.shape, dtype=torch.float64, device=ctx.runtime.device) if grad is None else grad.clone()
        ctx.runtime.sum_in_place(total)
        return total[ctx.runtime.rank], None, None


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) weight + bias, differentiable in the mean and the variance, too."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        ctx.save_for_backward(inputs, mean, variance, weight)
        ctx.eps, ctx.has_bias = eps, bias is not None
        return F.batch_norm(inputs, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, mean, variance, weight = ctx.saved_tensors
        dims = _all_but_channels(inputs)
        rate = (variance + ctx.eps).rsqrt()
        grad = grad_outputs.to(mean.dtype)
        normalised = (inputs - _per_channel(mean, inputs)).mul_(_per_channel(rate, inputs))
        sum_of_grad, sum_with_inputs = grad.sum(dims), normalised.mul_(grad).sum(dims)
        scale = rate if weight is None else rate * weight
        # d/dmean of the output is -scale, d/dvariance is -scale rate normalised / 2.
        return (
            (grad * _per_channel(scale, inputs)).to(inputs.dtype),
            -scale * sum_of_grad,
            -scale * rate * sum_with_inputs / 2,
            None if weight is None else sum_with_inputs,
            sum_of_grad if ctx.has_bias else None,
            None,
        )
