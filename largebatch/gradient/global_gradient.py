"""The gradient of one global batch after the other, in the way that a loss, a model and a config ask for."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import BeingComputed, GradientResult, accumulate_gradients
from largebatch.gradient.bucket_order import BucketOrder
from largebatch.gradient.choices import require_compatible
from largebatch.gradient.coupled_losses import accumulate_coupled_gradients
from largebatch.gradient.exact_batch_norm import ExactBatchNorm
from largebatch.gradient.micro_batch_norms import MicroBatchNorms, StepNorms, listening
from largebatch.gradient.ordered_reduction import OrderedReduction
from largebatch.gradient.out_of_memory import accumulate_if_it_fits
from largebatch.gradient.recomputation import Recomputation
from largebatch.gradient.reduction_clock import Compression, ReductionClock, Timeline
from largebatch.gradient.running_statistics import RunningStatistics
from largebatch.gradient.side_by_side import accumulate_exact_gradients
from largebatch.gradient.skipped_parameters import SkippedParameters
from largebatch.gradient.split_micro_batch import BatchSplit
from largebatch.gradient.step_buffers import StepBuffers
from largebatch.losses import Loss
from largebatch.losses.coupled import is_coupled


class BatchResult(NamedTuple):
    """What a global batch gave besides the gradient.

    Attributes:
        loss_sum: of this rank's samples, float64 scalar on the device.
        num_units: samples, labels or tokens of the whole global batch, or the sum of their weights.
        data_s: seconds that this rank waited for data.
        communication_s: seconds of exposed communication; None when not measured.
        norms: of the gradients of micro-batches, see `MicroBatchNorms`; None when not measured.
    """

    loss_sum: Tensor
    num_units: float
    data_s: float
    communication_s: float | None
    norms: StepNorms | None


class GlobalGradient:
    """Puts the gradient of the mean loss over a global batch into `.grad`.

    Args:
        runtime: the job.
        model: as `runtime.wrap` returned it.
        loss: sums per sample; may be a `CoupledLoss`.
        fixed_units: whether all samples have the same number of units; see `units_are_fixed`.
        ordered: sums over micro-batches in one order on any number of ranks, see `OrderedReduction`.
        exact_batch_norm: takes batch norm over the whole global batch, see `ExactBatchNorm`.
        compression: of what DDP sends.
        survives_shortage: of memory, see `accumulate_if_it_fits`; not with any of the three above.
        recomputes: whether some steps are to be computed twice, see `Recomputation`.
        step_buffers: names of buffers that move once per step, see `StepBuffers`.
        skips_parameters: whether passes may leave parameters out, see `SkippedParameters`.

    Attributes:
        statistics: of batch norm.
        norms: of micro-batch gradients, in steps that measure them.
        computing: which micro-batches are.

    Raises:
        ValueError: if ordered and exact batch norm are asked for together, or there is no batch norm to be exact; if
            recomputation is asked for beside one of them or a coupled loss.
    """

    def __init__(
        self,
        runtime: Runtime,
        model: nn.Module,
        loss: Loss,
        *,
        fixed_units: bool,
        ordered: bool = False,
        exact_batch_norm: bool = False,
        compression: Compression = "none",
        survives_shortage: bool = False,
        recomputes: bool = False,
        step_buffers: Sequence[str] = (),
        skips_parameters: bool = False,
    ) -> None:
        require_compatible(
            ordered=ordered,
            exact_batch_norm=exact_batch_norm,
            compresses=compression != "none",
            couples=is_coupled(loss),
            survives_shortage=survives_shortage,
            recomputes=recomputes,
        )
        module = runtime.unwrap(model)
        self._runtime, self._model, self._loss, self._fixed_units = runtime, model, loss, fixed_units
        self._units_per_sample: int | None = None
        self._clock = ReductionClock(runtime, model, compression)
        self._ordered = OrderedReduction(runtime, module) if ordered else None
        norms = ExactBatchNorm(runtime, module) if exact_batch_norm else None
        self.statistics = RunningStatistics(runtime, module, exact=norms.norms if norms else ())
        reduces_by_ddp = not (ordered or exact_batch_norm or survives_shortage)
        # DDP averages over ranks; the others add, and a term must not depend on the number of ranks. It is known here
        # alone: whoever looks at gradients before they are reduced is told.
        self._scale = runtime.world_size if reduces_by_ddp else 1
        self.norms = MicroBatchNorms(runtime, module, scale=self._scale)
        self._split = BatchSplit(runtime, module, loss)
        self._recomputation = Recomputation(runtime, model) if recomputes else None
        self._clock.before_reduction = None if self._recomputation is None else self._recomputation.take
        self.computing = BeingComputed(together=exact_batch_norm or is_coupled(loss))
        self._step_buffers = StepBuffers(module, step_buffers)
        skipped = SkippedParameters(runtime, model) if skips_parameters and (ordered or model is not module) else None
        self._buckets = BucketOrder(model if reduces_by_ddp else module, self._clock)
        accumulate = self._buckets.noted_in(_local_pass(loss, norms, skipped, survives_shortage=survives_shortage))
        self._accumulate = partial(accumulate, runtime, model, loss, clock=self._clock, ordered=self._ordered)

    def compute(
        self,
        plan: BatchPlan,
        micro_batches: Iterator[Any],
        *,
        random_key: int,
        measures_communication: bool,
        measures_norms: bool = False,
        recomputed_step: int | None = None,
    ) -> BatchResult:
        """Take this rank's micro-batches of one global batch and leave its gradient in `.grad`, which was zero or None.

        Args:
            plan: how the batch is cut and shared.
            micro_batches: this rank's, from the first one of the batch on.
            random_key: draws inside the model are keyed by it and by the index of the micro-batch.
            measures_communication: waits for a GPU once.
            measures_norms: costs a pass over the gradients per micro-batch, and if there is only one, see `BatchSplit`.
                A micro-batch's gradient must be its own: not with a coupled loss or exact batch norm.
            recomputed_step: the number of the step, if its gradient is to be computed twice; see `Recomputation`.

        Raises:
            MicroBatchTooLargeError: on every rank, only where shortages are survived; buffers are left moved.
            RuntimeError: on every rank, if one of them computed different bits the second time.
        """
        self._clock.begin(measures=measures_communication)
        self.statistics.begin_step(plan)
        count = len(plan.micro_batches(self._runtime.rank))
        self.computing.parts.clear()
        own, num_units, data_s = self._count_units(plan, itertools.islice(micro_batches, count))
        weight = self._scale / (num_units or 1)  # nothing counts: every gradient is 0
        if recomputed_step is not None:
            own, waited_s = self._rehearse(own, plan=plan, weight=weight, random_key=random_key)
            data_s += waited_s
        own = self.computing.noted(own)
        to_split = None
        if measures_norms and len(plan.micro_batch_sizes) == 1:
            to_split = next(own)
            own = iter([to_split])
        listener = self.norms if measures_norms and to_split is None else None
        with listening(listener, plan, self._step_buffers.one_by_one(own)) as parts:
            result = self._accumulate(parts, plan=plan, weight=weight, random_key=random_key)
        self.statistics.end_step()
        norms = None
        if to_split is not None:
            by_parameter = self._split.measure(to_split, weight=weight, random_key=random_key)
            norms = self.norms.sum(by_parameter, num_parts=2)
        elif measures_norms:
            norms = self.norms.finish()
        if recomputed_step is not None and self._recomputation is not None:
            self._recomputation.require_equal(recomputed_step)
        self.computing.parts.clear()
        return BatchResult(result.loss_sum, num_units, data_s + result.data_s, result.communication_s, norms)

    def state(self) -> dict[str, Any]:
        """What later gradients and measurements depend on besides weights and buffers, as plain values."""
        return {"bucket_order": self._buckets.names, "split": self._split.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on as the process that `state` is of; before the first step, on every rank alike.

        Raises:
            KeyError, TypeError, ValueError: if it is not such a state of this model.
        """
        self._buckets.settle(state["bucket_order"])
        self._split.load(state["split"])

    def own_s(self) -> float | None:
        """Seconds of a step in which this rank waited for no other, if it measured communication.

        Call it after the update. None in other steps and on a single rank.
        """
        return self._clock.own_s()

    def timeline(self) -> Timeline | None:
        """How this rank's gradient was reduced in a measured step, after its update; None on a single rank."""
        return self._clock.timeline()

    def _rehearse(
        self, own: Iterator[Any], *, plan: BatchPlan, weight: float, random_key: int
    ) -> tuple[Iterator[Any], float]:
        """Compute the gradient of a step before the step does; its micro-batches, and seconds waited for them."""
        assert self._recomputation is not None
        kept, waited_s = _kept(own)
        apart = self._step_buffers.one_by_one(iter(kept))
        self._recomputation.rehearse(self._loss, apart, plan=plan, weight=weight, random_key=random_key)
        return iter(kept), waited_s

    def _count_units(self, plan: BatchPlan, own: Iterator[Any]) -> tuple[Iterator[Any], float, float]:
        """Units of the whole global batch: counted from the targets of all ranks before the first backward pass.

        Only where samples differ in units (masked tokens) this needs a collective, and only there the micro-batches of
        a step are kept in host memory. Besides: the micro-batches, and the seconds that were waited for them here.
        """
        if self._fixed_units:
            if self._units_per_sample is None:
                first = next(own)
                self._units_per_sample = int(self._loss.units_per_sample(first.targets[:1]).sum())
                own = itertools.chain([first], own)
            return own, plan.global_batch_size * self._units_per_sample, 0.0
        kept, waited_s = _kept(own)
        units = [0.0] * len(plan.micro_batch_sizes)
        for part in kept:
            if not part.is_stand_in:
                units[part.index] = float(self._loss.units_per_sample(part.targets).sum())
        # One number per micro-batch, added up without rounding: weights of labels have digits, and the sum must not
        # depend on which rank has which.
        with self._clock.waiting():
            return iter(kept), math.fsum(self._runtime.sum(units)), waited_s


def _local_pass(
    loss: Loss, norms: ExactBatchNorm | None, skipped: SkippedParameters | None, *, survives_shortage: bool
) -> Callable[..., GradientResult]:
    accumulate: Callable[..., GradientResult]
    if norms is not None:
        accumulate = partial(accumulate_exact_gradients, norms=norms)
    elif survives_shortage:
        accumulate = accumulate_if_it_fits
    else:
        one_by_one = accumulate_coupled_gradients if is_coupled(loss) else accumulate_gradients
        accumulate = partial(one_by_one, skipped=skipped)
    return accumulate if skipped is None else skipped.around(accumulate)


def _kept(micro_batches: Iterator[Any]) -> tuple[list[Any], float]:
    """All of them, in memory, and the seconds until they were there."""
    started = time.perf_counter()
    return list(micro_batches), time.perf_counter() - started
