"""The gradient of one global batch: a local pass, a reduction, and instruments around them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from largebatch.batch.plan import BatchPlan
from largebatch.gradient.accumulation import LocalPass
from largebatch.gradient.batch_stream import BatchStream, Taken
from largebatch.gradient.instruments import BeingComputed, Instrument
from largebatch.gradient.micro_batch_norms import MicroBatchNorms, StepNorms
from largebatch.gradient.reduction_clock import ReductionClock
from largebatch.gradient.reductions import Reduction
from largebatch.gradient.running_statistics import RunningStatistics
from largebatch.gradient.step import Measures, Step
from largebatch.gradient.units import Counted, Units


class BatchResult(NamedTuple):
    """Results of a global batch besides its gradient.

    Attributes:
        plan: how it was cut and shared.
        loss_sum: of this rank's samples, float64 scalar on the device.
        units: samples, labels or tokens of the whole global batch, or the sum of their weights.
        data_s: seconds that this rank waited for data.
        norms: of the gradients of micro-batches, see `MicroBatchNorms`; None when not measured.
        taken: the samples of this rank's micro-batches.
        shortages: of memory, each of which halved the micro-batches; see `Halving`.
    """

    plan: BatchPlan
    loss_sum: Tensor
    units: Counted
    data_s: float
    norms: StepNorms | None
    taken: Sequence[Taken]
    shortages: tuple[Any, ...] = ()

    @property
    def num_units(self) -> float:
        """The number of `units`; waits for a GPU, if it has to."""
        return self.units.number


class Stored(Protocol):
    """What later gradients and measurements depend on besides weights and buffers."""

    def state(self) -> Any:
        """As plain values."""

    def load(self, state: Any) -> None:
        """Go on as the process that `state` is of; before the first step, on every rank alike."""


@dataclass
class GlobalGradient:
    """Puts the gradient of the mean loss over a global batch into `.grad`; see `choose_gradient`.

    Attributes:
        batches: where micro-batches come from.
        units: counts what the loss is divided by.
        local: how a rank computes its part.
        reduction: how the parts become one.
        clock: times the reduction.
        statistics: keeps the running statistics of batch norm.
        computing: knows the micro-batches that are being computed.
        norms: of micro-batch gradients, in steps that measure them.
        instruments: go around a step, the outermost first.
        stored: those with a state that a checkpoint keeps, by name.
    """

    batches: BatchStream
    units: Units
    local: LocalPass
    reduction: Reduction
    clock: ReductionClock
    statistics: RunningStatistics
    computing: BeingComputed
    norms: MicroBatchNorms
    instruments: Sequence[Instrument]
    stored: Mapping[str, Stored]

    def __call__(self, step: Step) -> BatchResult:
        """Take this rank's micro-batches of one global batch; `.grad`, which was zero or None, is the batch's."""
        self.clock.begin(measures=Measures.COMMUNICATION in step.measures)
        parts, units = self.units.count(step.plan, self.batches.take(step.plan))
        weight = units.weight(self.reduction.scale)  # nothing else divides
        with contextlib.ExitStack() as around:
            for instrument in self.instruments:
                if instrument.is_due(step):
                    parts = around.enter_context(instrument.around(step, parts, weight))
            self.reduction.begin(step.plan)
            loss_sum = self.local(step, parts, weight, self.reduction)
            self.reduction.finish()
            self.clock.is_reduced()
        norms, self.norms.found = self.norms.found, None
        data_s, taken = self.batches.waited_s, self.batches.taken
        return BatchResult(step.plan, loss_sum, units, data_s, norms, taken)

    def state(self) -> dict[str, Any]:
        """What later gradients and measurements depend on besides weights and buffers, as plain values."""
        return {name: one.state() for name, one in self.stored.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on as the process that `state` is of; before the first step, on every rank alike.

        Raises:
            KeyError, TypeError, ValueError: if it is not such a state of this model.
        """
        for name, one in self.stored.items():
            one.load(state[name])
