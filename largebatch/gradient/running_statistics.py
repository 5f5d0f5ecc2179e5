"""Running statistics of batch norm: a function of all micro-batches of a run, whichever ranks computed them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.gather import gather_tensors
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.step import Step, Weight

_KINDS = ("num_batches_tracked", "running_mean", "running_var")


class RunningStatistics:
    """Makes W ranks arrive at the running statistics that one rank would have, without a collective per step.

    An instrument.

    A batch norm of momentum m sees the K micro-batches of a step in their order: `running = (1 - m) running + m value`
    for each (ghost batch norm, Hoffer et al. 2017). Rank r, which computes the micro-batches a to b - 1 of them,
    multiplies its buffers by (1 - m)^a / W before and by W (1 - m)^(K - b) after its forward passes. The mean of the
    buffers over ranks is then exactly the sequential result, since the recursion is linear, and each rank's own buffer
    keeps the right size in between. `merge` takes the mean.

    A mean is rounded, so statistics that went on from it would depend on when it was taken. Evaluations and checkpoints
    therefore look at it and leave each rank its own (`merged`), and a checkpoint holds these as well (`state`): when a
    run was evaluated, saved or stopped shows in no digit.

    Layers with momentum None (a plain average over all micro-batches) and counts of batches are merged exactly, too.
    Layers in evaluation mode are left alone. So are other buffers, which have no rule that
    would hold for all of them: see `StepBuffers`.

    Args:
        runtime: the job.
        module: the unwrapped model.
        exact: batch norms whose statistics are those of the global batch already, the same on every rank.
    """

    def __init__(self, runtime: Runtime, module: nn.Module, *, exact: Sequence[_NormBase] = ()) -> None:
        self._runtime = runtime
        self._num_before = self._num_after = 0
        # Statistics of SyncBatchNorm are those of all ranks already.
        named = {
            name: one
            for name, one in module.named_modules()
            if isinstance(one, _NormBase)
            and one.running_mean is not None
            and not isinstance(one, nn.SyncBatchNorm)
            and one not in exact
        }
        self._names, self._norms = list(named), list(named.values())
        self._merged: list[tuple[Tensor, Tensor, Tensor]] | None = None
        self._in_step: dict[float, list[Tensor]] = {}
        self._moved: set[int] = set()  # norms that were in training mode in a step since the last merge

    def is_due(self, step: Step) -> bool:
        """In every step, where there are any."""
        return bool(self._norms)

    @contextmanager
    def around(self, step: Step, parts: Iterator[Any], weight: Weight) -> Iterator[Iterator[Any]]:
        """See `Instrument`."""
        self.begin_step(step.plan)
        yield parts
        self.end_step()

    def begin_step(self, plan: BatchPlan) -> None:
        """Before the forward passes of a step; the plan says who computes which micro-batches."""
        own = plan.micro_batches(self._runtime.rank)
        self._num_before = own[0].index
        self._num_after = len(plan.micro_batch_sizes) - own[-1].index - 1
        if self._merged is None:
            self._remember()
        self._moved |= {id(norm) for norm in self._norms if norm.training}
        if self._runtime.world_size > 1:
            self._in_step = self._training_statistics()
            self._scale(lambda momentum: (1 - momentum) ** self._num_before / self._runtime.world_size)

    def end_step(self) -> None:
        """After the forward passes of a step."""
        if self._runtime.world_size > 1:
            self._scale(lambda momentum: (1 - momentum) ** self._num_after * self._runtime.world_size)

    @torch.no_grad()
    def merge(self) -> None:
        """Give every rank the statistics over all ranks, for good; one collective, between steps."""
        if self._runtime.world_size == 1 or not self._norms:
            return
        if self._merged is None:
            self._remember()
        parts = list(self._parts())
        if not parts:
            return
        flat = torch.cat([value.double().reshape(-1) for value, _ in parts])
        self._runtime.sum_in_place(flat)
        for (value, store), total in zip(parts, flat.split([value.numel() for value, _ in parts]), strict=True):
            store(total.view_as(value))
        self._remember()

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Inside every rank has the statistics over all ranks, behind it its own again; between steps."""
        before = self._merged, self._moved
        own = [[buffer.clone() for buffer in _buffers(norm)] for norm in self._norms]
        try:
            self.merge()
            yield
        finally:
            with torch.no_grad():
                for norm, kept in zip(self._norms, own, strict=True):
                    for buffer, value in zip(_buffers(norm), kept, strict=True):
                        buffer.copy_(value)
            self._merged, self._moved = before

    def state(self) -> dict[str, Tensor]:
        """What each rank has of its own: buffer -> [world size + 1, ...], at last what ranks last had in common.

        Empty where they have the same now; one collective, between steps.
        """
        if self._runtime.world_size == 1 or not self._moved:
            return {}
        buffers = [named for norm, named in self._pairs() if id(norm) in self._moved]
        moved = {name: pair for named in buffers for name, pair in named.items()}
        of_ranks = gather_tensors(self._runtime, [own for own, _ in moved.values()])
        return {
            name: torch.cat([rows, common[None]])
            for (name, (_, common)), rows in zip(moved.items(), of_ranks, strict=True)
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Give each rank its own back, if there are as many as `state` is of; all have what they share until then.

        Raises:
            ValueError: if it is of other batch norms.
        """
        self._remember()
        if any(len(rows) != self._runtime.world_size + 1 for rows in state.values()):
            return
        known = {name: pair for _, buffers in self._pairs() for name, pair in buffers.items()}
        for name, rows in state.items():
            if name not in known or (rows.dtype, rows.shape[1:]) != (known[name][0].dtype, known[name][0].shape):
                raise ValueError(f"{name} {list(rows.shape[1:])}: statistics of a batch norm that the model has not")
            for place, row in zip(known[name], (rows[self._runtime.rank], rows[-1]), strict=True):
                place.copy_(row)
        self._moved = {id(norm) for norm, buffers in self._pairs() if buffers.keys() <= state.keys()}

    def forget(self) -> None:
        """After every rank was given the same buffers from outside: they go on from these."""
        self._merged, self._moved = None, set()

    @torch.no_grad()
    def _scale(self, factor: Callable[[float], float]) -> None:
        for momentum, tensors in self._in_step.items():
            torch._foreach_mul_(tensors, factor(momentum))

    def _training_statistics(self) -> dict[float, list[Tensor]]:
        """The buffers that the coming forward passes will move, by momentum."""
        moved: dict[float, list[Tensor]] = {}
        for norm in self._norms:
            if norm.training and norm.momentum is not None:
                moved.setdefault(norm.momentum, []).extend(_statistics(norm))
        return moved

    def _remember(self) -> None:
        """What all ranks have in common now: counts and plain averages go on from there."""
        self._merged, self._moved = [], set()
        for norm in self._norms:
            count, mean, variance = _buffers(norm)
            self._merged.append((count.clone(), mean.clone(), variance.clone()))

    def _pairs(self) -> Iterator[tuple[_NormBase, dict[str, tuple[Tensor, Tensor]]]]:
        """Each norm, and by their names the rank's own buffers with what all ranks last had in common."""
        for name, norm, common in zip(self._names, self._norms, self._merged or [], strict=True):
            buffers = zip(_buffers(norm), common, strict=True)
            yield norm, {f"{name}.{kind}": pair for kind, pair in zip(_KINDS, buffers, strict=True)}

    def _parts(self) -> Iterator[tuple[Tensor, Callable[[Tensor], object]]]:
        """(what a rank adds to a sum over ranks, what to do with the sum), in an order in which it can be done."""
        assert self._merged is not None
        for norm, (count, *averages) in zip(self._norms, self._merged, strict=True):
            if id(norm) not in self._moved:
                continue
            yield _count(norm) - count, _adding(_count(norm), count)
            for statistic, average in zip(_statistics(norm), averages, strict=True):
                if norm.momentum is not None:
                    yield statistic / self._runtime.world_size, statistic.copy_
                else:
                    own_sum = _count(norm) * statistic - count * average
                    yield own_sum, _averaging(statistic, count * average, _count(norm))


def _statistics(norm: _NormBase) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def _buffers(norm: _NormBase) -> tuple[Tensor, Tensor, Tensor]:
    return _count(norm), *_statistics(norm)


def _count(norm: _NormBase) -> Tensor:
    assert norm.num_batches_tracked is not None
    return norm.num_batches_tracked


def _adding(count: Tensor, before: Tensor) -> Callable[[Tensor], object]:
    return lambda total: count.copy_(before + total.round())


def _averaging(statistic: Tensor, sum_before: Tensor, count: Tensor) -> Callable[[Tensor], object]:
    """For after `count` was summed over ranks; 1 where nothing was counted yet."""
    return lambda total: statistic.copy_(torch.where(count > 0, (sum_before + total) / count.clamp(min=1), statistic))
