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
from largebatch.optim import l2_norm


@dataclass(frozen=True)
class StepNorms:
    """What a step showed of its gradient and of those of its parts, maybe still on the way between ranks.

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
    """Measures sum_i b_i |g_i|^2 over all micro-batches of a global batch, and |g|^2 of the whole.

    g_i is the mean gradient of the b_i samples of micro-batch i; the mean of the g_i, weighted by b_i, is the gradient
    g that the step uses, before clipping. What a compression loses between ranks touches |g|^2 alone. Only the steps
    that are measured pay: for one pass over the gradients per micro-batch and a sum of two numbers, and two for each
    group, over ranks.

    Where samples differ in units (masked tokens) a sample is still what counts: its gradient is the sum over its
    tokens, divided by the mean number of tokens of a sample of this global batch.

    It listens between `begin` and `end` only, so that no other backward pass is taken for the step's: not the rehearsal
    of a recomputed gradient, not the Hessian-vector products of a sharpness.

    Args:
        runtime: the job.
        module: the unwrapped model.
        scale: what the sum of all micro-batches' gradients is divided by to be g: the ranks, where DDP averages.
    """

    def __init__(self, runtime: Runtime, module: nn.Module, *, scale: float) -> None:
        self._runtime, self._scale = runtime, scale
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._plan: BatchPlan | None = None
        self._handles: list[Any] = []
        self._number = -1  # of the micro-batch, among those of this rank
        self._norms: list[dict[int, Tensor]] = []
        self.group({})

    def group(self, groups: Mapping[str, Sequence[nn.Parameter]]) -> None:
        """Tell the norms of these parameters from the others', too."""
        self._groups = tuple(groups)
        members = [{id(parameter) for parameter in group} for group in groups.values()]
        everything = [1.0] * len(self._parameters)
        rows = [everything, *([float(id(one) in group) for one in self._parameters] for group in members)]
        self._membership = torch.tensor(rows, dtype=torch.float64, device=self._runtime.device)

    def begin(self, plan: BatchPlan) -> None:
        """Before the first micro-batch of a step."""
        self._plan, self._number = plan, -1
        self._norms = [{} for _ in self._parameters]
        self._handles = [
            parameter.register_hook(partial(self._take, place)) for place, parameter in enumerate(self._parameters)
        ]

    def next_micro_batch(self) -> None:
        """Before each micro-batch: a parameter may have no gradient in some of them."""
        self._number += 1

    def end(self) -> None:
        """Listen no more, in a step that is finished or given up."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _take(self, place: int, gradient: Tensor) -> None:
        self._norms[place][self._number] = l2_norm(gradient)

    def finish(self) -> StepNorms:
        """Of all micro-batches of all ranks; call it before gradients are clipped."""
        assert self._plan is not None
        sizes = [part.size for part in self._plan.micro_batches(self._runtime.rank)]
        # A parameter that is left out of a graph: its gradient there is 0.
        missing = torch.zeros((), device=self._runtime.device)
        rows = [own.get(number, missing) for own in self._norms for number in range(len(sizes))]
        norms = torch.stack(rows).double()
        by_size = norms.square().view(len(self._parameters), len(sizes)) @ (1 / torch.tensor(sizes).to(norms))
        share = self._plan.global_batch_size / self._scale
        own_part = sq_norms([one.grad for one in self._parameters], self._runtime) / self._runtime.world_size
        by_parameter = torch.stack([by_size * share**2, own_part], dim=1)
        return self.sum(by_parameter, num_parts=len(self._plan.micro_batch_sizes))

    def sum(self, by_parameter: Tensor, *, num_parts: int) -> StepNorms:
        """Over parameters, groups and ranks, of this rank's [parameters, 2] in the units of `.grad`."""
        rows = self._membership @ by_parameter / self._runtime.loss_scale**2
        return StepNorms(self._runtime.start_sum(rows.flatten()), self._groups, num_parts)


@contextlib.contextmanager
def listening(norms: MicroBatchNorms | None, plan: BatchPlan, micro_batches: Iterator[Any]) -> Iterator[Iterator[Any]]:
    """This rank's micro-batches of one step, announced to `norms` as they are taken; None: nobody listens.

    Only the backward passes inside are heard, also if the step is given up, to be taken again in smaller parts.
    """
    if norms is None:
        yield micro_batches
        return

    def announced() -> Iterator[Any]:
        for micro_batch in micro_batches:
            norms.next_micro_batch()
            yield micro_batch

    norms.begin(plan)
    try:
        yield announced()
    finally:
        norms.end()


def sq_norms(gradients: Sequence[Tensor | None], runtime: Runtime) -> Tensor:
    """Squared norm of each, float64; 0 of what has no gradient."""
    zero = torch.zeros((), device=runtime.device)
    return torch.stack([zero if one is None else l2_norm(one) for one in gradients]).double().square()
