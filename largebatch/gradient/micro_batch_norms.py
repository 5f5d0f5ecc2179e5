"""Norms of micro-batch gradients, from the backward passes that a step makes anyway."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.pending_sum import PendingSum
from largebatch.distributed.runtime import Runtime
from largebatch.distributed.sending import sent
from largebatch.gradient.step import Measures, Step, Weight
from largebatch.optim import l2_norm


@dataclass(frozen=True)
class StepNorms:
    """Norms of the gradients of a step and of its parts, maybe still on the way between ranks.

    Attributes:
        pending: the sums.
        groups: names of the groups of parameters.
        num_parts: micro-batches; 2 where a single one was split.
    """

    pending: PendingSum
    groups: tuple[str, ...]
    num_parts: int

    def result(self) -> list[tuple[float, float]]:
        """(sum_i b_i |g_i|^2, |g|^2) of all parameters, then of each group; waits for the ranks."""
        numbers = iter(self.pending.result())
        return list(zip(numbers, numbers, strict=True))


class MicroBatchNorms:
    """An instrument that measures sum_i b_i |g_i|^2 over all micro-batches of a global batch, and |g|^2 of the whole.

    g_i is the mean gradient of the b_i samples of micro-batch i; the mean of the g_i, weighted by b_i, is the gradient
    g that the step uses, before clipping. What a compression loses between ranks touches |g|^2 alone. Only the steps
    that are measured pay: for one pass over the gradients per micro-batch and a sum of two numbers, and two for each
    group, over ranks.

    Where samples differ in units (masked tokens) a sample is still what counts: its gradient is the sum over its
    tokens, divided by the mean number of tokens of a sample of this global batch.

    No other backward pass is taken for the step's: not the rehearsal of a recomputed gradient, not the Hessian-vector
    products of a sharpness.

    Args:
        runtime: the job.
        module: the unwrapped model.
        scale: of the reduction; the sum of all micro-batches' gradients is divided by it to give g.
        groups: of parameters, whose norms are told from the others', too.

    Attributes:
        groups: their names.
        found: of the latest step that was measured, by this or by `SplitMicroBatch`; whoever takes it sets None.
    """

    def __init__(
        self, runtime: Runtime, module: nn.Module, *, scale: float, groups: Mapping[str, Sequence[nn.Parameter]]
    ) -> None:
        self._runtime, self._scale = runtime, scale
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._number = -1  # of the micro-batch, among those of this rank
        self._norms: list[dict[int, Tensor]] = []
        self.found: StepNorms | None = None
        self.groups = tuple(groups)
        members = [{id(parameter) for parameter in group} for group in groups.values()]
        everything = [1.0] * len(self._parameters)
        rows = [everything, *([float(id(one) in group) for one in self._parameters] for group in members)]
        self._membership = torch.tensor(rows, dtype=torch.float64, device=self._runtime.device)

    def is_due(self, step: Step) -> bool:
        """In steps that measure norms and have several micro-batches."""
        return Measures.NORMS in step.measures and len(step.plan.micro_batch_sizes) > 1

    @contextlib.contextmanager
    def around(self, step: Step, parts: Iterator[Any], weight: Weight) -> Iterator[Iterator[Any]]:
        """See `Instrument`: listens to the backward passes inside alone, also if the step is given up."""
        self._norms, self._number = [{} for _ in self._parameters], -1
        handles = [one.register_hook(partial(self._take, place)) for place, one in enumerate(self._parameters)]
        try:
            yield self._counted(parts)
        finally:
            for handle in handles:
                handle.remove()
        self.found = self._sum_of(step.plan)

    def _counted(self, parts: Iterator[Any]) -> Iterator[Any]:
        for part in parts:
            self._number += 1  # a parameter may have no gradient in some of them
            yield part

    def _take(self, place: int, gradient: Tensor) -> None:
        self._norms[place][self._number] = l2_norm(gradient)

    def _sum_of(self, plan: BatchPlan) -> StepNorms:
        sizes = [part.size for part in plan.micro_batches(self._runtime.rank)]
        # A parameter that is left out of a graph: its gradient there is 0.
        missing = torch.zeros((), device=self._runtime.device)
        rows = [own.get(number, missing) for own in self._norms for number in range(len(sizes))]
        norms = torch.stack(rows).double()
        by_size = norms.square().view(len(self._parameters), len(sizes)) @ sent(
            1 / torch.tensor(sizes).double(), norms.device
        )
        share = plan.global_batch_size / self._scale
        own_part = sq_norms([one.grad for one in self._parameters], self._runtime) / self._runtime.world_size
        by_parameter = torch.stack([by_size * share**2, own_part], dim=1)
        return self.sum(by_parameter, num_parts=len(plan.micro_batch_sizes))

    def sum(self, by_parameter: Tensor, *, num_parts: int) -> StepNorms:
        """Over parameters, groups and ranks, of this rank's [parameters, 2] in the units of `.grad`."""
        rows = self._membership @ by_parameter / self._runtime.loss_scale**2
        return StepNorms(self._runtime.start_sum(rows.flatten()), self.groups, num_parts)


def sq_norms(gradients: Sequence[Tensor | None], runtime: Runtime) -> Tensor:
    """Squared norm of each, float64; 0 of what has no gradient."""
    zero = torch.zeros((), device=runtime.device)
    return torch.stack([zero if one is None else l2_norm(one) for one in gradients]).double().square()
