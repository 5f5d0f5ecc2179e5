"""Sharpness-aware minimisation: the gradient is taken where a step up the loss leads, on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import LocalPass, forward, micro_batch_key
from largebatch.gradient.reduction_clock import ReductionClock
from largebatch.gradient.reductions import Reduction
from largebatch.gradient.snapshots import Buffers
from largebatch.gradient.step import Step, Weight


@dataclass(frozen=True)
class SharpnessAware:
    """How a step climbs before its gradient is taken.

    Attributes:
        rho: length of the ascent, in the L2 norm.
        by: whose gradient is climbed: each micro-batch its own, which needs no communication (m-SAM, where m is the
            size of a micro-batch); or all of them that of the global batch, for one more reduction in a step.
        adaptive: the ascent of a weight counts by its size, so that no scaling of layers changes it (ASAM).
    """

    rho: float
    by: Literal["micro", "global"] = "micro"
    adaptive: bool = False

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ValueError(f"rho={self.rho}: an ascent has a length above 0. Leave out SharpnessAware for none.")

    @contextmanager
    def raised(self, weights: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Iterator[None]:
        """Inside the weights are w + rho g / |g|, behind it their own again, bit for bit; a gradient of 0 climbs none.

        With `adaptive` w + rho w^2 g / |w g|. Takes a copy of the weights; the gradients are overwritten.
        """
        pairs = [(one, grad) for one, grad in zip(weights, gradients, strict=True) if grad is not None]
        kept = [one.detach().clone() for one, _ in pairs]
        with torch.no_grad():
            climbed, ascent = [one for one, _ in pairs], [grad for _, grad in pairs]
            sizes = [one.abs() for one in climbed] if self.adaptive else []
            if sizes:
                torch._foreach_mul_(ascent, sizes)
            norm = torch.nn.utils.get_total_norm(ascent)
            # No small number is added to the norm: gradients are those of a mean or of a sum, as the ranks are many.
            length = torch.where(norm > 0, self.rho / norm, torch.zeros_like(norm))
            torch._foreach_mul_(ascent, length)
            if sizes:
                torch._foreach_mul_(ascent, sizes)
            torch._foreach_add_(climbed, ascent)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(climbed, kept)


class AscentOfEach:
    """Each micro-batch climbs by its own gradient, then gives the one at the raised weights; a `LocalPass`.

    The ascent stays on its rank, and nothing is sent for it: the result depends on the micro-batches alone, whichever
    ranks compute them. Both passes of a micro-batch draw the same numbers. The loss is that at the weights themselves,
    and buffers, such as running statistics, move in the first pass only. State of a model that is neither a parameter
    nor a buffer sees each micro-batch twice. Source: Foret et al. 2021, "Sharpness-Aware Minimization", section 4.1.

    It costs a second forward and backward pass, and on each rank a copy of the weights and a gradient.

    Args:
        runtime: the job.
        module: the unwrapped model.
        loss: sums per sample.
        how: the ascent.
    """

    is_joint = False

    def __init__(self, runtime: Runtime, module: nn.Module, loss: Any, how: SharpnessAware) -> None:
        self.loss, self._runtime, self._module, self._how = loss, runtime, module, how
        self._weights = [one for one in module.parameters() if one.requires_grad]

    def __call__(self, step: Step, parts: Iterator[Any], weight: Weight, reduction: Reduction) -> Tensor:
        """See `LocalPass`."""
        runtime = self._runtime
        loss_sum = torch.zeros((), dtype=torch.float64, device=runtime.device)
        for left in reversed(range(len(step.plan.micro_batches(runtime.rank)))):
            part = next(parts)
            inputs, targets = runtime.place(part.inputs), runtime.place_tensor(part.targets)

            def loss_by(model: nn.Module, part: Any = part, inputs: Any = inputs, targets: Tensor = targets) -> Tensor:
                runtime.seed(micro_batch_key(step.random_key, part.index))
                total: Tensor = self.loss.loss_per_sample(forward(model, inputs), targets).sum()
                return 0 * total if part.is_placeholder else total

            micro_loss = loss_by(self._module)
            ascent = torch.autograd.grad(runtime.scaled(micro_loss), self._weights, allow_unused=True)
            moved = Buffers(self._module)
            with self._how.raised(self._weights, ascent):
                del ascent
                with reduction.one_pass(part.index, is_last=left == 0):
                    runtime.backward(loss_by(reduction.model) * weight)
            moved.put_back()
            loss_sum += micro_loss.detach()
        return loss_sum


class AscentOfAll:
    """All micro-batches climb by the gradient of the global batch; a `LocalPass` around another one.

    Draws, loss, buffers and state are as with `AscentOfEach`. It costs a second pass over all micro-batches, whose
    inputs the rank keeps for it, a second reduction, and a copy of the weights.

    Args:
        module: the unwrapped model.
        inner: passes over the micro-batches one by one.
        how: the ascent.
        clock: times both reductions.
    """

    is_joint = False

    def __init__(self, module: nn.Module, inner: LocalPass, how: SharpnessAware, clock: ReductionClock) -> None:
        self.loss, self._inner, self._how, self._clock = inner.loss, inner, how, clock
        self._module = module
        self._weights = [one for one in module.parameters() if one.requires_grad]

    def __call__(self, step: Step, parts: Iterator[Any], weight: Weight, reduction: Reduction) -> Tensor:
        """See `LocalPass`."""
        own: list[Any] = []
        loss_sum = self._inner(step, _kept(parts, own), weight, reduction)
        reduction.finish()
        self._clock.is_reduced()
        moved, ascent = Buffers(self._module), [one.grad for one in self._weights]
        with self._how.raised(self._weights, ascent):
            torch._foreach_zero_([grad for grad in ascent if grad is not None])  # in place: they may be DDP's buckets
            reduction.begin(step.plan)
            self._inner(step, _from(moved, own), weight, reduction)
        moved.put_back()
        return loss_sum


def _kept(parts: Iterator[Any], own: list[Any]) -> Iterator[Any]:
    for part in parts:
        own.append(part)
        yield part


def _from(start: Buffers, parts: Sequence[Any]) -> Iterator[Any]:
    """The micro-batches, each of which finds the same buffers."""
    for part in parts:
        start.put_back()
        yield part
