"""The predicted memory of a run, and the largest micro-batch that fits into a budget."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from largebatch.batch.plan import BatchPlan
from largebatch.diagnostics.memory.budget import largest_that_fits
from largebatch.losses.coupled import is_coupled
from largebatch.run.predicted_memory.host_side import ValueReadError
from largebatch.run.predicted_memory.imagined_run import DeviceKind, ImaginedRun, StepMemory, imagined_run
from largebatch.run.prepare import Prepared
from largebatch.training.raised import error_text, is_ours, where_raised

_TORCH = str(Path(torch.__file__).parent)
_PACKAGE = str(Path(__file__).resolve().parents[2])
_STANDARD = str(Path(traceback.__file__).parent)
_OF_MODELS = tuple(f"{_TORCH}/{part}/" for part in ("nn", "autograd", "optim"))
_ON_EVERY_WAY = "__torch_dispatch__"
_NOT_THE_READER = (_TORCH, str(Path(__file__).parent))
# What fake tensors cannot do, whoever asks.
_WITHOUT_NUMBERS = (
    ValueReadError,
    DataDependentOutputException,
    DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
    NotImplementedError,
)

# Ends of the ranges of what is not tensors of the program; see `report.NOT_COUNTED`.
OUTSIDE_BYTES = 5 * 2**29  # 2.5 GiB
FRAGMENTED = 1.1


@dataclass(frozen=True)
class Fit:
    """The largest micro-batch within a budget.

    Attributes:
        budget: bytes of the device.
        usable: of these, for tensors.
        size: samples; 0: not even one fits.
        key: of the config that sets it.
        peak: bytes at this size; 0: none fits.
        share: samples of a rank per step, beyond which a micro-batch cannot grow.
    """

    budget: int
    usable: int
    size: int
    key: str
    peak: int
    share: int


@dataclass(frozen=True)
class PredictedMemory:
    """Bytes that the tensors of one rank take, with nothing of kernels, libraries and allocators.

    Attributes:
        device: "cuda" or "cpu".
        micro_batch_size: samples.
        num_micro_batches: of the steps that were taken.
        weights: parameters and buffers.
        optimizer: its state.
        step: the highest of the steps that were taken.
        evaluation: most that is alive during an evaluation.
        per_sample: how much the peak grows with each sample of a micro-batch.
        fit: None: no budget was given, or all micro-batches are in memory together.
        is_joint: whether they are.
        average: of the weights.
    """

    device: DeviceKind
    micro_batch_size: int
    num_micro_batches: int
    weights: int
    optimizer: int
    step: StepMemory
    evaluation: int
    per_sample: float
    fit: Fit | None
    is_joint: bool
    average: int = 0

    @property
    def activations(self) -> int:
        """Activations and temporary tensors at the peak."""
        return self.step.peak - self.weights - self.optimizer - self.average - self.step.gradients


class NotPredictableError(ValueError):
    """The model, the loss or the optimizer cannot run without numbers."""


class PredictionFailedError(RuntimeError):
    """The prediction itself has a defect."""


def predict_memory(
    prepared: Prepared, device: DeviceKind, *, budget: int | None = None, sizes: Sequence[int] | None = None
) -> PredictedMemory:
    """The memory of rank 0 by taking steps without numbers: two to make the optimizer's state, one at each size.

    Args:
        prepared: the run; stays as it is.
        device: whose rules torch follows.
        budget: bytes of the device; None: no largest micro-batch is looked for.
        sizes: that this one is among; None: it has any size.

    Raises:
        NotPredictableError: if something needs the value of a tensor, or the run's code fails without; with its place.
        PredictionFailedError: if the prediction itself has a defect.
    """
    try:
        with imagined_run(prepared, device) as imagined:
            return _predicted(prepared, imagined, device, budget, sizes)
    except Exception as error:
        if _is_of_the_run(error):
            raise NotPredictableError(_reason(error)) from error
        raise PredictionFailedError(
            f"The prediction of memory failed with {error_text(error)}. The traceback above shows a defect of "
            "largebatch, not of the run: report it, and leave out plan.memory."
        ) from error


def _predicted(
    prepared: Prepared, imagined: ImaginedRun, device: DeviceKind, budget: int | None, sizes: Sequence[int] | None
) -> PredictedMemory:
    planned = max(prepared.numbers.ramp.plans, key=lambda plan: plan.max_micro_batch_size)
    share, size = max(map(planned.rank_batch_size, range(planned.world_size))), planned.max_micro_batch_size
    sees_all = imagined.is_joint or is_coupled(prepared.loss) or prepared.config.sam.is_global

    def plan_of(size: int, share: int) -> BatchPlan:
        """Micro-batches beyond the second take what the second takes, unless they depend on each other."""
        count = -(-share // size) if sees_all else min(-(-share // size), 2)
        return BatchPlan.pinned(
            global_batch_size=size * count * planned.world_size, world_size=planned.world_size, micro_batch_size=size
        )

    steps = [imagined.take_step(plan_of(size, share)) for _ in range(3)]
    in_passes, in_update = max(step.in_passes for step in steps), max(step.in_update for step in steps)
    highest = replace(max(steps, key=lambda step: step.peak), in_passes=in_passes, in_update=in_update)
    evaluation, state = imagined.evaluate(prepared), imagined.state_bytes()
    twice = imagined.take_step(plan_of(2 * size, 2 * share))
    per_sample = (twice.in_passes - steps[-1].in_passes) / size
    fit = None
    if budget is not None and not imagined.is_joint:
        usable = max(int((budget - OUTSIDE_BYTES) / FRAGMENTED), 0) if device == "cuda" else budget
        known, found = {size: in_passes}, 0
        if in_update <= usable:

            def passes(size: int) -> int:
                return imagined.take_step(plan_of(size, share)).in_passes

            found = _largest(passes, usable, known, per_sample=per_sample, most=share, sizes=sizes)
        key = "batch.max_micro" if prepared.config.batch.micro is None else "batch.micro"
        fit = Fit(budget, usable, found, key, max(known[found], in_update) if found else 0, share)
    return PredictedMemory(
        device=device,
        micro_batch_size=size,
        num_micro_batches=len(plan_of(size, share).micro_batches(0)),
        weights=imagined.weight_bytes(),
        optimizer=state,
        step=highest,
        evaluation=evaluation,
        per_sample=per_sample,
        fit=fit,
        is_joint=imagined.is_joint,
        average=imagined.average_bytes(),
    )


def _largest(
    passes: Callable[[int], int],
    usable: int,
    known: dict[int, int],
    *,
    per_sample: float,
    most: int,
    sizes: Sequence[int] | None,
) -> int:
    """The largest of the sizes within the usable bytes, 0 if none is; `known` then has its bytes."""
    found = largest_that_fits(passes, usable, known=known, per_sample=per_sample, most=most)
    found = found if sizes is None else max((one for one in sizes if one <= found), default=0)
    if found and found not in known:
        known[found] = passes(found)
    return found


def _is_of_the_run(error: BaseException) -> bool:
    """Whether model, loss or optimizer are the cause: they ask too much of fake tensors, or their own code failed."""
    if isinstance(error, _WITHOUT_NUMBERS) or is_ours(error):
        return True
    files = [one.filename for one in traceback.extract_tb(error.__traceback__) if one.name != _ON_EVERY_WAY]
    last = max((at for at, file in enumerate(files) if file.startswith(_PACKAGE)), default=-1)
    return any(file.startswith(_OF_MODELS) or not _is_machinery(file) for file in files[last + 1 :])


def _is_machinery(file: str) -> bool:
    is_standard = file.startswith(_STANDARD) and "-packages" not in file
    return is_standard or file.startswith((_TORCH, "<")) or "/accelerate/" in file


def _reason(error: BaseException) -> str:
    """Fact and place, rule, remedy."""
    if isinstance(error, DynamicOutputShapeException):
        fact = "the shape of a tensor depends on values"
    elif isinstance(error, (ValueReadError, DataDependentOutputException)):
        fact = "the value of a tensor is read"
    else:
        return f"A step without numbers failed: {error_text(error)}. Only a real run can tell."
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(_NOT_THE_READER)]
    place = where_raised(error) or f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}"
    return (
        f"In {place}, {fact}, and the tensors of a prediction have none. Choose without reading them (torch.where), or "
        "see the column memory/peak_bytes of a real run."
    )
