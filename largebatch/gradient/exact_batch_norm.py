"""Batch norm over the whole global batch, on any number of ranks and micro-batches, with the gradient of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from largebatch.distributed.runtime import Runtime
from largebatch.gradient.batch_norm_kernels import (
    Statistics,
    gradient_sums,
    input_gradient,
    moments,
    normalise,
    wide_type,
)
from largebatch.gradient.lockstep import Lockstep, LockstepError


class ExactBatchNorm:
    """Gives every batch norm of a model, in training, the mean and variance of the whole global batch.

    The micro-batches of a rank run side by side in one thread each (`Lockstep`), up to their next batch norm. There
    the moments of all of them, on all ranks, become one mean and one variance, which all are normalised by. The
    backward pass goes through one graph of all micro-batches of the rank: a sample counts in the statistics that all
    others are normalised by, as in one big batch. Running statistics move once per step.

    It costs, per batch norm and step, one sum over ranks of 2 x channels + 1 float64 numbers in the forward pass and
    one of 2 x channels in the backward pass, whatever the number of ranks, and the activations of all micro-batches of
    the rank in memory at once: only the working memory inside of a layer is that of one micro-batch. No batch norm can
    be had for less, and no two share a sum: the statistics of a layer follow from those of the layers before it, and
    their gradients from those of the layers after.

    Args:
        runtime: the job.
        module: the unwrapped model. Its batch norms change for good: inside `forward_all` they do the above.

    Raises:
        ValueError: if there is no batch norm, or one with a `forward` of its own.
    """

    def __init__(self, runtime: Runtime, module: nn.Module) -> None:
        self._runtime = runtime
        self.norms = batch_norms(module)
        self._lockstep = Lockstep(runtime.device, self._normalise_all)
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
            normalised: Tensor = self._lockstep.exchange(norm, inputs)
            return normalised

        return forward

    def _normalise_all(self, norm: _BatchNorm, inputs: list[Tensor]) -> list[Tensor]:
        """The outputs of a batch norm for the inputs of all micro-batches of this rank."""
        arguments = self._runtime, norm, self._token, norm.weight, norm.bias, *inputs
        *outputs, self._token = _OverGlobalBatch.apply(*arguments)
        return outputs


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


@torch.no_grad()
def _update_running_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """As torch does it after one big batch."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    weight = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    for statistic, value in ((norm.running_mean, mean), (norm.running_var, variance)):
        statistic.lerp_(value.to(statistic.dtype), weight)


class _OverGlobalBatch(torch.autograd.Function):
    """One batch norm for all micro-batches of this rank, with the statistics of those of all ranks.

    The token makes each call depend on the one before, so that the collectives of the backward pass come in reverse
    order on every rank: autograd alone does not promise an order between parallel branches of a model. For the same
    reason the backward pass meets also where nothing depends on a norm, and its gradient is zero.
    """

    @staticmethod
    def forward(
        ctx: Any,
        runtime: Runtime,
        norm: _BatchNorm,
        token: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        sizes = [one.numel() // one.shape[1] for one in inputs]
        own = [moments(one, norm.eps) for one in inputs]
        count, mean, squares = global_moments(
            runtime, sizes, *zip(*own, strict=True), in_float64=wide_type(inputs[0]) == torch.float64
        )
        # Only where it can be: reading the count makes the host wait for the device.
        if sum(sizes) <= 1 and float(count) <= 1:
            raise ValueError(
                "A batch norm got one value per channel from the whole global batch: its variance is not defined. Use "
                "a larger batch.total, or no batch norm there."
            )
        _update_running_statistics(norm, mean, squares / (count - 1))
        variance, wide = squares / count, wide_type(inputs[0])
        of = Statistics(mean.to(wide), variance.to(wide), (variance + norm.eps).rsqrt().to(wide), norm.eps)
        ctx.save_for_backward(of.mean, of.variance, of.rate, count, weight, *inputs)
        ctx.runtime, ctx.eps, ctx.bias_type = runtime, norm.eps, None if bias is None else bias.dtype
        return *(normalise(one, of, weight, bias) for one in inputs), token.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        mean, variance, rate, count, weight, *inputs = ctx.saved_tensors
        of = Statistics(mean, variance, rate, ctx.eps)
        pairs = list(zip(grads[:-1], inputs, strict=True))
        own = torch.stack([gradient_sums(*pair, of) for pair in pairs]).double().sum(dim=0)
        everywhere = own.clone()
        ctx.runtime.sum_in_place(everywhere)
        means = (everywhere / count).to(mean.dtype)
        of_inputs = [
            input_gradient(*pair, of, weight, means) if is_needed else None
            for pair, is_needed in zip(pairs, ctx.needs_input_grad[5:], strict=True)
        ]
        of_bias = None if ctx.bias_type is None else own[0].to(ctx.bias_type)
        return None, None, None, None if weight is None else own[1].to(weight.dtype), of_bias, *of_inputs


def global_moments(
    runtime: Runtime, sizes: Sequence[int], means: Sequence[Tensor], variances: Sequence[Tensor], *, in_float64: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Count [1], mean [channels] and sum of squared deviations [channels] over all ranks, in float64.

    Squares about zero travel with count and sum, in one collective. For a channel with mean m and deviation s this
    costs about 2^-52 (m / s)^2 of the variance, less than the rounding of float32 activations has cost it before:
    2^-50 (m / s)^2. Activations in float64 have no digits to spare: their squares are taken about the global mean, in
    a second collective. So are those of a single rank, which needs none.

    Args:
        runtime: the job.
        sizes: values per channel of each micro-batch of this rank.
        means: of each micro-batch, [channels].
        variances: of each micro-batch, divided by n, [channels].
        in_float64: whether the activations are.
    """
    wide = [one.double() for one in means]
    within = [size * one.double() for size, one in zip(sizes, variances, strict=True)]

    def squares_about(point: Tensor | float) -> Tensor:
        between = [size * (one - point).square() for size, one in zip(sizes, wide, strict=True)]
        return torch.stack([*within, *between]).sum(dim=0)

    own_sum = torch.stack([size * one for size, one in zip(sizes, wide, strict=True)]).sum(dim=0)
    parts = [own_sum.new_full((1,), float(sum(sizes))), own_sum]
    in_one_round = runtime.world_size > 1 and not in_float64
    total = torch.cat([*parts, squares_about(0.0)] if in_one_round else parts)
    runtime.sum_in_place(total)
    count, sums, squares = total.tensor_split([1, 1 + len(own_sum)])
    mean = sums / count
    if in_one_round:
        return count, mean, (squares - count * mean.square()).clamp(min=0)
    squares = squares_about(mean)
    runtime.sum_in_place(squares)
    return count, mean, squares
