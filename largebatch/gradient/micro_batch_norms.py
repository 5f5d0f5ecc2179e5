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
from largebatch.optim import OptimizerGeometry, l2_norm
from largebatch.optim.geometry import Metric


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
        return self._pairs()[: 1 + len(self.groups)]

    def of_optimizer(self) -> list[tuple[float, float]]:
        """(sum_i b_i g_i'P g_i, g'P g) likewise, see `OptimizerGeometry`; nothing if it was not measured."""
        return self._pairs()[1 + len(self.groups) :]

    def _pairs(self) -> list[tuple[float, float]]:
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
        geometry: of the optimizer, in which they are measured as well, at the price of one more pass; None: they are
            not. Steps of an optimizer whose preconditioner is a young state have none.

    Attributes:
        groups: their names.
        found: of the latest step that was measured, by this or by `SplitMicroBatch`; whoever takes it sets None.
    """

    def __init__(
        self,
        runtime: Runtime,
        module: nn.Module,
        *,
        scale: float,
        groups: Mapping[str, Sequence[nn.Parameter]],
        geometry: OptimizerGeometry | None = None,
    ) -> None:
        self._runtime, self._scale, self._geometry = runtime, scale, geometry
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._number = -1  # of the micro-batch, among those of this rank
        self._norms: list[dict[int, Tensor]] = []
        self._sq_norms: list[dict[int, Tensor]] = []  # in the optimizer's geometry
        self._metrics: list[Metric | None] | None = None
        self.found: StepNorms | None = None
        self.groups = tuple(groups)
        members = [{id(parameter) for parameter in group} for group in groups.values()]
        everything = [1.0] * len(self._parameters)
        rows = [everything, *([float(id(one) in group) for one in self._parameters] for group in members)]
        self._membership = torch.tensor(rows, dtype=torch.float64, device=self._runtime.device)

    @property
    def has_geometry(self) -> bool:
        """Whether it measures in the optimizer's geometry, too."""
        return self._geometry is not None

    def is_due(self, step: Step) -> bool:
        """In steps that measure norms and have several micro-batches."""
        return Measures.NORMS in step.measures and len(step.plan.micro_batch_sizes) > 1

    @contextlib.contextmanager
    def around(self, step: Step, parts: Iterator[Any], weight: Weight) -> Iterator[Iterator[Any]]:
        """See `Instrument`: listens to the backward passes inside alone, also if the step is given up."""
        self._norms, self._number = [{} for _ in self._parameters], -1
        self._sq_norms = [{} for _ in self._parameters]
        self.prepare()
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
        if self._metrics is not None and (metric := self._metrics[place]) is not None:
            self._sq_norms[place][self._number] = metric.sq_norm(gradient)

    def prepare(self) -> None:
        """Read the optimizer's state: at the begin of a step that is measured, on every rank alike."""
        self._metrics = None if self._geometry is None else self._geometry.metrics(self._parameters)

    def _sum_of(self, plan: BatchPlan) -> StepNorms:
        sizes = [part.size for part in plan.micro_batches(self._runtime.rank)]
        found = [self._table(self._norms, len(sizes)).square()]
        if self._metrics is not None:
            found.append(self._table(self._sq_norms, len(sizes)))
        inverse_sizes = sent(1 / torch.tensor(sizes).double(), found[0].device)
        by_size = torch.stack([one @ inverse_sizes for one in found], dim=1)
        share = plan.global_batch_size / self._scale
        own_part = self.sq_norms([one.grad for one in self._parameters]) / self._runtime.world_size
        return self.sum(by_size * share**2, own_part, num_parts=len(plan.micro_batch_sizes))

    def _table(self, numbers: Sequence[Mapping[int, Tensor]], count: int) -> Tensor:
        """Of each parameter and micro-batch of this rank, float64 [parameters, count]."""
        # A parameter that is left out of a graph: its gradient there is 0.
        missing = torch.zeros((), device=self._runtime.device)
        rows = [own.get(number, missing) for own in numbers for number in range(count)]
        return torch.stack(rows).double().view(len(self._parameters), count)

    def sq_norms(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Squared norms of each, and in the optimizer's geometry, float64 [parameters, 1 or 2]; 0 without gradient."""
        zero = torch.zeros((), device=self._runtime.device)
        norms = torch.stack([zero if one is None else l2_norm(one) for one in gradients]).double().square()
        if self._metrics is None:
            return norms[:, None]
        pairs = zip(gradients, self._metrics, strict=True)
        in_geometry = [zero if one is None or metric is None else metric.sq_norm(one) for one, metric in pairs]
        return torch.stack([norms, torch.stack([one.double() for one in in_geometry])], dim=1)

    def sum(self, weighted: Tensor, whole: Tensor, *, num_parts: int) -> StepNorms:
        """Over parameters, groups and ranks.

        Args:
            weighted: this rank's part of sum_i b_i |g_i|^2, in units of `.grad`, [parameters, 1 or 2], see `sq_norms`.
            whole: its part of |g|^2, likewise.
            num_parts: see `StepNorms`.
        """
        if self._metrics is not None:
            factors = torch.stack([torch.ones(len(whole), device=whole.device).double(), self._factors()], dim=1)
            weighted, whole = weighted * factors, whole * factors
        columns = torch.stack([weighted, whole], dim=-1).unbind(dim=1)
        # Each by itself: a second geometry changes no bit of the first one's numbers.
        rows = [self._membership @ column.contiguous() / self._runtime.loss_scale**2 for column in columns]
        self._metrics = None  # as large as the model
        return StepNorms(self._runtime.start_sum(torch.cat(rows).flatten()), self.groups, num_parts)

    def _factors(self) -> Tensor:
        """Of the blocks of the preconditioner that depend on the gradient of the whole batch, float64 [parameters]."""
        assert self._metrics is not None
        factors = [torch.ones((), dtype=torch.float64, device=self._runtime.device)] * len(self._parameters)
        for place, (parameter, metric) in enumerate(zip(self._parameters, self._metrics, strict=True)):
            if metric is not None and metric.factor is not None and parameter.grad is not None:
                factors[place] = metric.factor(parameter.grad / self._runtime.loss_scale)
        return torch.stack(factors)
