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
from largebatch.gradient.nested_groups import NestedGroups
from largebatch.optim import l2_norm

FEWEST_SIZES = 3  # of groups: two, and a larger one to compare with


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


@dataclass(frozen=True)
class StepGroups:
    """Mean squared norms of nested groups of a step's micro-batch gradients, maybe still on the way between ranks.

    Attributes:
        pending: the sums over ranks.
        sizes: samples per group.
        world_size: ranks that were added up.
    """

    pending: PendingSum
    sizes: tuple[int, ...]
    world_size: int

    def result(self) -> list[float]:
        """Mean of |mean gradient of a group|^2 over the groups of each size and over ranks; waits for them."""
        return [total / self.world_size for total in self.pending.result()]


class _Listener:
    """Hands the fresh gradient of each backward pass of a step on: before it is added to others or reduced.

    Hooks are there between `begin` and `end` only, so that no other backward pass is taken for the step's: not the
    rehearsal of a recomputed gradient, not the Hessian-vector products of a sharpness.

    Args:
        runtime: the job.
        module: the unwrapped model.
        scale: what the sum of all micro-batches' gradients is divided by to be the gradient: see `GlobalGradient`.
    """

    def __init__(self, runtime: Runtime, module: nn.Module, *, scale: float) -> None:
        self._runtime, self._scale = runtime, scale
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._plan: BatchPlan | None = None
        self._handles: list[Any] = []
        self._number = -1  # of the micro-batch, among those of this rank

    def begin(self, plan: BatchPlan) -> None:
        """Before the first micro-batch of a step."""
        self._plan, self._number = plan, -1
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
        raise NotImplementedError


class MicroBatchNorms(_Listener):
    """Measures sum_i b_i |g_i|^2 over all micro-batches of a global batch, and |g|^2 of the whole.

    g_i is the mean gradient of the b_i samples of micro-batch i; the mean of the g_i, weighted by b_i, is the gradient
    g that the step uses, before clipping. What a compression loses between ranks touches |g|^2 alone. Only the steps
    that are measured pay: for one pass over the gradients per micro-batch and a sum of two numbers, and two for each
    group, over ranks.

    Where samples differ in units (masked tokens) a sample is still what counts: its gradient is the sum over its
    tokens, divided by the mean number of tokens of a sample of this global batch.

    Args:
        runtime: the job.
        module: the unwrapped model.
        scale: what the sum of all micro-batches' gradients is divided by to be g: the ranks, where DDP averages.
    """

    def __init__(self, runtime: Runtime, module: nn.Module, *, scale: float) -> None:
        super().__init__(runtime, module, scale=scale)
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
        self._norms = [{} for _ in self._parameters]
        super().begin(plan)

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


class MicroBatchGroups(_Listener):
    """Measures the mean gradients of 1, 2, 4, ... consecutive micro-batches of a rank: their mean squared norms.

    Steps whose micro-batches differ in size, or of which a rank has fewer than 4, are not measured; see `group_sizes`.
    Others pay for one pass over the gradients per micro-batch, memory for a float64 gradient per group size, and a
    small sum over ranks.
    """

    def begin(self, plan: BatchPlan) -> None:
        """Before the first micro-batch of a step."""
        self._sizes = group_sizes(plan)
        self._groups = [NestedGroups(self._sizes) for _ in self._parameters]
        self._counts = [0] * len(self._parameters)
        if len(self._sizes) >= FEWEST_SIZES:
            super().begin(plan)

    def _take(self, place: int, gradient: Tensor) -> None:
        self._skip(place, to=self._number)
        self._groups[place].add(gradient.detach().reshape(-1).to(torch.float64, copy=True), 1)
        self._counts[place] += 1

    def _skip(self, place: int, *, to: int) -> None:
        """Where a parameter was left out of the graph its gradient is 0."""
        parameter = self._parameters[place]
        while self._counts[place] < to:
            zero = torch.zeros(parameter.numel(), dtype=torch.float64, device=parameter.device)
            self._groups[place].add(zero, 1)
            self._counts[place] += 1

    def finish(self) -> StepGroups | None:
        """Of all groups of all ranks; None if the step cannot be measured."""
        if len(self._sizes) < FEWEST_SIZES:
            return None
        assert self._plan is not None
        for place in range(len(self._parameters)):
            self._skip(place, to=len(self._plan.micro_batches(self._runtime.rank)))
        found = [groups.mean_sq_norms() for groups in self._groups]
        self._groups = []
        micro = self._plan.micro_batch_sizes[0]
        share = self._plan.global_batch_size / self._scale / self._runtime.loss_scale / micro
        own = torch.tensor(found, dtype=torch.float64, device=self._runtime.device).sum(dim=0) * share**2
        sizes = tuple(size * micro for size in self._sizes)
        return StepGroups(self._runtime.start_sum(own), sizes, self._runtime.world_size)


@contextlib.contextmanager
def listening(
    listeners: Sequence[MicroBatchNorms | MicroBatchGroups], plan: BatchPlan, micro_batches: Iterator[Any]
) -> Iterator[Iterator[Any]]:
    """This rank's micro-batches of one step, announced to all listeners as they are taken.

    Listeners hear the backward passes inside alone, also if the step is given up, to be taken again in smaller parts.
    """

    def announced() -> Iterator[Any]:
        for micro_batch in micro_batches:
            for one in listeners:
                one.next_micro_batch()
            yield micro_batch

    for one in listeners:
        one.begin(plan)
    try:
        yield announced()
    finally:
        for one in listeners:
            one.end()


def group_sizes(plan: BatchPlan) -> list[int]:
    """1, 2, 4, ... micro-batches as far as every rank has them; none if micro-batches differ in size.

    >>> group_sizes(BatchPlan.pinned(global_batch_size=48, world_size=2, micro_batch_size=4))
    [1, 2, 4]
    """
    fewest = min(len(plan.micro_batches(rank)) for rank in range(plan.world_size))
    if len(set(plan.micro_batch_sizes)) > 1:
        return []
    return [2**power for power in range(fewest.bit_length())]


def sq_norms(gradients: Sequence[Tensor | None], runtime: Runtime) -> Tensor:
    """Squared norm of each, float64; 0 of what has no gradient."""
    zero = torch.zeros((), device=runtime.device)
    return torch.stack([zero if one is None else l2_norm(one) for one in gradients]).double().square()
