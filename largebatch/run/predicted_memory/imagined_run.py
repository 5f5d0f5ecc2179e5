"""A run whose tensors have shapes and no numbers, and what memory its steps would take."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode

from largebatch.batch.plan import BatchPlan
from largebatch.diagnostics.memory.cuda_rules import cuda_rules
from largebatch.diagnostics.memory.live_bytes import CUDA_GRANULE, LiveBytes
from largebatch.distributed.generators import preserved_generators
from largebatch.distributed.imagined_ranks import imagined_ranks
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.step import Measures, Step
from largebatch.models.modes import train_mode
from largebatch.run.parts import build_run, own_copy
from largebatch.run.precision.decisions import ANY_GPU, decide
from largebatch.run.precision.device import Device
from largebatch.run.precision.number_format import settled
from largebatch.run.predicted_memory.host_side import HostSide
from largebatch.run.predicted_memory.repeated_sample import Repeating, fake_like, repeating
from largebatch.run.prepare import Prepared
from largebatch.training.loop import Run, take_step
from largebatch.training.observers import EvaluationObserver
from largebatch.training.row_log import RowLog
from largebatch.training.weight_average import WeightAverage, average_of

DeviceKind = Literal["cuda", "cpu"]
_ON_CPU = {"fp16": "bf16"}  # of the same width; there is no loss scale on a CPU


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one step on one rank.

    Attributes:
        in_passes: most that was alive at once in the forward and backward passes: it grows with the micro-batch.
        in_update: the same of clipping and the optimizer's step, which do not know the micro-batch.
        operation: of torch that reached the peak, the higher of the two.
        gradients: of the peak, those in `.grad`.
        all_gradients: in `.grad` after the backward passes.
    """

    in_passes: int
    in_update: int
    operation: str
    gradients: int
    all_gradients: int

    @property
    def peak(self) -> int:
        """Most that was alive at once."""
        return max(self.in_passes, self.in_update)


class ImaginedRuntime(Runtime):
    """Moves nothing: the model is where it stays, and a micro-batch becomes a fake one of its shape."""

    def wrap(self, model: torch.nn.Module, **options: Any) -> torch.nn.Module:
        """See `Runtime`; tensors without numbers cannot be moved in place, and need not be."""
        self._accelerator.device_placement = False
        with patch.multiple(model, create=True, to=lambda *_, **__: model, double=lambda: model):
            return super().wrap(model, **options)

    def place_tensor(self, value: Tensor) -> Tensor:
        """See `Runtime`."""
        return super().place_tensor(fake_like(value))


class ImaginedRun:
    """Takes steps of a run without numbers; see `imagined_run`.

    Attributes:
        run: the run.
        memory: counts its tensors.
        is_joint: whether all micro-batches of a step are in memory together.
    """

    def __init__(self, run: Run, loader: Repeating, memory: LiveBytes, host: HostSide) -> None:
        self.average = average_of(run)
        self.run, self.memory, self._loader, self._host = run, memory, loader, host
        self.is_joint = run.gradient.local.is_joint
        self._measures = run.steps.always & ~Measures.LOSS
        self._gradient, self._in_passes = run.gradient, StepMemory(0, 0, "", 0, 0)
        run.gradient = _Around(run.gradient, self._watched)  # type: ignore[assignment]
        run.agreement = _NobodyAsks()  # type: ignore[assignment]
        run.gradient.batches.begin(0, 1)
        self._number = 0

    def take_step(self, plan: BatchPlan) -> StepMemory:
        """The memory of the next step, with the micro-batches of `plan` on rank 0."""
        self._loader.begin(plan)
        self._number += 1
        step = Step(self._number, 0, plan, lr=1.0, random_key=0, measures=self._measures)
        try:
            take_step(self.run, step)
        finally:
            self._host.reads_anything = False
        passes, memory = replace(self._in_passes, in_update=self.memory.peak), self.memory
        if memory.peak <= passes.in_passes:
            return passes
        held = memory.bytes_of(self._gradients(), at_peak=True)
        return replace(passes, operation=memory.peak_operation, gradients=held)

    def evaluate(self, prepared: Prepared) -> int:
        """Most bytes that are alive during an evaluation, after a step."""
        loaders: Any = dict.fromkeys(("train", "val"), self._loader)
        observer = EvaluationObserver(
            RowLog([], num_samples=1),
            train=prepared.train_plain,
            validation=prepared.validation,
            loss=prepared.measured_loss,
            every=None,
            micro_batch_size=prepared.config.observers.evaluation.micro,
            loaders=loaders,
            average=self.average,
        )
        self.memory.restart()
        self._host.reads_anything = True
        try:
            observer.measure(self.run)
        finally:
            self._host.reads_anything = False
        return self.memory.peak

    def state_bytes(self) -> int:
        """Of the optimizer's state."""
        states = self.run.optimizer.state.values()
        return self.memory.bytes_of(one for state in states for one in state.values() if isinstance(one, Tensor))

    def average_bytes(self) -> int:
        """Of the average of the weights."""
        return 0 if self.average is None else self.memory.bytes_of(self.average.tensors(self.run.module).values())

    def weight_bytes(self) -> int:
        """Of parameters and buffers."""
        return self.memory.bytes_of([*self.run.module.parameters(), *self.run.module.buffers()])

    def _watched(self, step: Step) -> Any:
        memory = self.memory
        memory.restart()
        result = self._gradient(step)
        gradients = self._gradients()
        held, total = memory.bytes_of(gradients, at_peak=True), memory.bytes_of(gradients)
        self._in_passes = StepMemory(memory.peak, 0, memory.peak_operation, held, total)
        memory.restart()
        self._host.reads_anything = True
        return result

    def _gradients(self) -> list[Tensor]:
        return [one.grad for one in self.run.module.parameters() if one.grad is not None]


class _Around:
    """A gradient, called by way of `call`."""

    def __init__(self, gradient: Any, call: Callable[[Step], Any]) -> None:
        self._own, self._call = gradient, call

    def __call__(self, step: Step) -> Any:
        return self._call(step)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


class _NobodyAsks:
    """In place of `Agreement`, whose sums of some bytes say how a run stands: this one stands well."""

    def send(self, *_: Any, **__: Any) -> Any:
        return _Zeros()

    def read(self, sums: Any) -> tuple[str, bool]:
        return "running", False


class _Zeros:
    loss_sum = grad_norm = 0.0


@contextlib.contextmanager
def imagined_run(prepared: Prepared, device: DeviceKind) -> Iterator[ImaginedRun]:
    """Rank 0 of the run that `prepared` describes, on the number of ranks of its plan.

    The model is copied without its numbers. Everything else is the run's own: its gradient, reduction, update.

    Args:
        prepared: the run; stays as it is.
        device: whose rules torch follows: autocast, attention, rounding of sizes.
    """
    prepared = _on(prepared, device)
    world_size, compute = prepared.numbers.plan.world_size, prepared.config.precision.compute
    loader = repeating(prepared, feeds_gpu=device == "cuda")
    own = (one.fake_mode for one in prepared.model.parameters() if isinstance(one, FakeTensor))
    fake, host = next(own, None) or FakeTensorMode(allow_non_fake_inputs=True), HostSide()
    memory = LiveBytes(granule=CUDA_GRANULE if device == "cuda" else 1)
    on_device = cuda_rules() if device == "cuda" else contextlib.nullcontext()
    with preserved_generators(), imagined_ranks(world_size), contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # torch's, which a real run repeats
        runtime = stack.enter_context(ImaginedRuntime.open(precision=_ON_CPU.get(compute, compute), on_cpu=True))
        runtime.device = torch.device("cpu")  # accelerate's "cpu:0" would be another one to fake tensors
        with FakeCopyMode(fake):
            copied = own_copy(prepared)
        if device == "cuda":
            _choose_foreach(copied.optimizer)
        train_mode(copied.model)
        losses = [one for one in (copied.loss, copied.measured_loss) if isinstance(one, torch.nn.Module)]
        memory.watch(one for part in (copied.model, *losses) for one in [*part.parameters(), *part.buffers()])
        for mode in (on_device, fake, memory, host):
            stack.enter_context(mode)
        average = [] if prepared.numbers.average is None else [WeightAverage(prepared.numbers.average)]
        run = build_run(copied, runtime, loader, observers=average)
        for one in average:
            one.begin(run.module)
        yield ImaginedRun(run, loader, memory, host)


def _on(prepared: Prepared, device: DeviceKind) -> Prepared:
    """The run as it is decided for the device, without torch.compile, which makes no graph of fake tensors."""
    own, given = Device.own(), prepared.decisions.given
    chosen = Device() if device == "cpu" else own if own.is_gpu else ANY_GPU
    plain = given.model_copy(update={"precision": given.precision.model_copy(update={"compile": False})})
    config = settled(plain, chosen)
    return replace(prepared, config=config, decisions=decide(chosen, plain, prepared.model, prepared.numbers))


def _choose_foreach(optimizer: torch.optim.Optimizer) -> None:
    """As torch's optimizers choose on a GPU, unless somebody chose; LARS and LAMB choose kernels of their own."""
    for group in optimizer.param_groups:
        own_kernels = group.get("compile", False) in (None, True)
        if group.get("foreach", False) is None and not group.get("fused") and not own_kernels:
            group["foreach"] = True
