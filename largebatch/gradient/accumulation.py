"""The gradient of a global batch: any number of micro-batches, one all-reduce."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from largebatch.batch.plan import BatchPlan
from largebatch.batch.random_keys import stream_key
from largebatch.distributed.runtime import Inputs, Runtime
from largebatch.gradient.flat_gradients import FlatGradients
from largebatch.gradient.ordered_reduction import OrderedReduction
from largebatch.gradient.reduction_clock import ReductionClock
from largebatch.gradient.skipped_parameters import SkippedParameters, completed_by
from largebatch.losses.coupled import is_coupled


class MicroBatchSource(Protocol):
    """What the accumulation needs to know of a micro-batch: its data and its place in the global batch."""

    @property
    def inputs(self) -> Inputs:
        """[n, ...], or a dict of such."""

    @property
    def targets(self) -> Tensor:
        """[n, ...]."""

    @property
    def index(self) -> int:
        """Place in the step's list of micro-batches, over all ranks."""

    @property
    def is_stand_in(self) -> bool:
        """Whether no sample of it could be loaded: another one stands in, which lets ranks meet and counts nothing."""


class BeingComputed:
    """The micro-batches whose gradient is being computed right now: for whoever has to tell what failed.

    Args:
        together: they depend on each other, so that all of a step are computed at once.

    Attributes:
        parts: one, or all of the step so far; none while one is loaded.
    """

    def __init__(self, *, together: bool) -> None:
        self.parts: list[MicroBatchSource] = []
        self._together = together

    def noted(self, micro_batches: Iterable[Any]) -> Iterator[Any]:
        """The same micro-batches."""
        for part in micro_batches:
            self.parts.append(part)
            yield part
            if not self._together:
                self.parts.clear()


class LossPerSample(Protocol):
    """What the accumulation needs of a loss."""

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum of the loss over the units of each sample, [n]."""


class GradientResult(NamedTuple):
    """This rank's part of the loss of one global batch, and where its time went.

    Attributes:
        loss_sum: sum of the loss over this rank's samples, float64 scalar on the device.
        data_s: seconds spent waiting for micro-batches.
        communication_s: seconds in which the backward pass had nothing left to do but wait for the all-reduce (exposed
            communication); 0 on a single rank, None when not measured.
    """

    loss_sum: Tensor
    data_s: float
    communication_s: float | None


def forward(model: nn.Module, inputs: Inputs) -> Any:
    """Call the model with a tensor, or with a dict as keyword arguments."""
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def copies(inputs: Inputs) -> Inputs:
    """A tensor, or a dict of such, in memory of its own."""
    return {name: part.clone() for name, part in inputs.items()} if isinstance(inputs, dict) else inputs.clone()


def give_copies(model: nn.Module) -> None:
    """Have a model that writes to its inputs get copies: a micro-batch may be read twice.

    Noise scales, recomputed steps, and steps taken again after a shortage of memory do so.
    """

    def copied(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        return tuple(map(copies, inputs)), copies(named)

    model.register_forward_pre_hook(copied, with_kwargs=True)


def micro_batch_key(random_key: int, index: int) -> int:
    """Key of what the model draws for micro-batch `index` of a step."""
    return stream_key(random_key, "micro-batch", index)


def accumulate_gradients(
    runtime: Runtime,
    model: nn.Module,
    loss: LossPerSample,
    micro_batches: Iterable[MicroBatchSource],
    *,
    plan: BatchPlan,
    weight: float,
    random_key: int,
    clock: ReductionClock | None = None,
    ordered: OrderedReduction | None = None,
    skipped: SkippedParameters | None = None,
) -> GradientResult:
    """Add `weight` times the gradient of this rank's loss sum to `.grad`, averaged over ranks.

    With weight = world_size / (samples, or valid tokens, of the whole global batch), `.grad` is the gradient of the
    mean loss over the global batch, however it is cut and shared: nothing else divides. All micro-batches but the last
    run under `no_sync`, so every gradient element is reduced exactly once.

    An ordered reduction sums over ranks instead of averaging: its weight is 1 / units.

    Args:
        runtime: the job.
        model: as returned by `runtime.wrap`; its gradients are zero or None.
        loss: sums per sample.
        micro_batches: this rank's part of the global batch; consumed one by one, so that only one is in memory.
        plan: how the batch is cut and shared.
        weight: the one normalisation.
        random_key: draws inside the model are keyed by it and by the micro-batch's index, not by the rank.
        clock: measures exposed communication in this step; costs a device synchronisation on a GPU.
        ordered: reduces in place of DDP, in an order that does not depend on the ranks.
        skipped: for models whose passes may leave parameters out; None: every parameter is in the last pass.

    Raises:
        RuntimeError: if it is not, and DDP would wait for it.
        ValueError: for a loss that couples samples: over micro-batches it would be another loss.
    """
    _require_uncoupled(loss)
    if ordered is not None:
        ordered.begin(plan)
    loss_sum = torch.zeros((), dtype=torch.float64, device=runtime.device)
    source = iter(micro_batches)
    data_s = 0.0
    count = len(plan.micro_batches(runtime.rank))
    for number in range(count):
        started = time.perf_counter()
        micro_batch = next(source)
        inputs, targets = runtime.place(micro_batch.inputs), runtime.place_tensor(micro_batch.targets)
        data_s += time.perf_counter() - started
        runtime.seed(micro_batch_key(random_key, micro_batch.index))
        reduces = number == count - 1 and ordered is None
        with contextlib.nullcontext() if reduces else no_sync(model), completed_by(skipped):
            micro_loss = loss.loss_per_sample(forward(model, inputs), targets).sum()
            if micro_batch.is_stand_in:
                micro_loss = 0 * micro_loss
            runtime.backward(micro_loss * weight)
        loss_sum += micro_loss.detach()
        if ordered is not None:
            ordered.take(micro_batch.index)
    if ordered is not None:
        if clock is not None:
            clock.start()
        ordered.finish()
    elif clock is not None:
        clock.require_complete()
    return GradientResult(loss_sum, data_s, None if clock is None else clock.exposed_s())


def _require_uncoupled(loss: LossPerSample) -> None:
    if is_coupled(loss):
        raise ValueError(
            f"{type(loss).__name__} depends on all samples of a batch at once: added up over micro-batches it would "
            "compare fewer samples. Use accumulate_coupled_gradients."
        )


def sum_gradients(runtime: Runtime, module: nn.Module) -> None:
    """Replace the gradients of an unwrapped model by their sums over ranks, one collective per dtype."""
    if runtime.world_size == 1:
        return
    gradients = FlatGradients(module)
    total = gradients.read()
    for part in total:
        runtime.sum_in_place(part)
    gradients.write(total)


def no_sync(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Backward passes inside leave the ranks' gradients apart."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()
