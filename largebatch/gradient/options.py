"""Chooses local pass, reduction and instruments of a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.runtime import Runtime
from largebatch.distributed.wrapping import BUCKET_MB
from largebatch.gradient import choices
from largebatch.gradient.accumulation import LocalPass, OneByOne
from largebatch.gradient.batch_stream import BatchStream
from largebatch.gradient.bucket_order import BucketOrder
from largebatch.gradient.bucket_views import BucketViews
from largebatch.gradient.coupled_losses import Twice
from largebatch.gradient.exact_batch_norm import ExactBatchNorm
from largebatch.gradient.global_gradient import GlobalGradient
from largebatch.gradient.instruments import BeingComputed, Instrument
from largebatch.gradient.micro_batch_norms import MicroBatchNorms
from largebatch.gradient.ordered_reduction import InOrder
from largebatch.gradient.out_of_memory import Halving, IfItFits
from largebatch.gradient.power_sgd import PowerSGD, PowerSGDOptions
from largebatch.gradient.recomputation import Recomputation
from largebatch.gradient.reduction_clock import ReductionClock
from largebatch.gradient.reductions import Afterwards, Compression, Overlapped, Reduction
from largebatch.gradient.running_statistics import RunningStatistics
from largebatch.gradient.sharpness_aware import AscentOfAll, AscentOfEach, SharpnessAware
from largebatch.gradient.side_by_side import SideBySide
from largebatch.gradient.skipped_parameters import SkippedParameters
from largebatch.gradient.snapshots import StepBuffers
from largebatch.gradient.split_micro_batch import SplitMicroBatch
from largebatch.gradient.step import Measures, Step
from largebatch.gradient.units import Units
from largebatch.losses import Loss
from largebatch.losses.coupled import is_coupled
from largebatch.optim import OptimizerGeometry

Gradient = GlobalGradient | Halving
OwnReduction = Callable[[Runtime, nn.Module, ReductionClock], Reduction]
"""(job, model as `Runtime.wrap` returned it, clock) -> how its ranks become one."""


@dataclass(frozen=True)
class GradientOptions:
    """The way in which the gradient of a global batch is computed.

    Attributes:
        fixed_units: whether all samples have the same number of units, see `units_are_fixed`; None: as the loss says.
        ordered: sums over micro-batches in one order on any number of ranks, see `InOrder`.
        exact_batch_norm: takes batch norm over the whole global batch, see `ExactBatchNorm`.
        compression: of what DDP sends.
        powersgd: options of the compression of that name.
        halves_micro_batches: takes a step that runs out of memory again in smaller parts, see `Halving`.
        recompute_every: steps between ones that are computed twice, see `Recomputation`; None: none.
        step_buffers: names of buffers that move once per step, see `StepBuffers`.
        skips_parameters: whether passes may leave parameters out, see `SkippedParameters`.
        groups: of parameters whose noise is told apart, see `MicroBatchNorms`.
        geometry: of the optimizer, in which the noise is measured, too.
        reduction: in place of those above.
        sharpness_aware: takes gradients where an ascent leads, see `SharpnessAware`; None: at the weights.
        bucket_mb: MiB of gradients that ranks send at once where DDP does not send them; see `Runtime.wrap`.
    """

    fixed_units: bool | None = None
    ordered: bool = False
    exact_batch_norm: bool = False
    compression: Compression = "none"
    powersgd: PowerSGDOptions = field(default_factory=PowerSGDOptions)
    halves_micro_batches: bool = False
    recompute_every: int | None = None
    step_buffers: Sequence[str] = ()
    skips_parameters: bool = False
    groups: Mapping[str, Sequence[nn.Parameter]] = field(default_factory=dict)
    geometry: OptimizerGeometry | None = None
    reduction: OwnReduction | None = None
    sharpness_aware: SharpnessAware | None = None
    bucket_mb: float = BUCKET_MB

    def __post_init__(self) -> None:
        if self.compression not in get_args(Compression):
            raise ValueError(f"compression={self.compression!r}: use one of {', '.join(get_args(Compression))}.")
        if self.recompute_every is not None and self.recompute_every < 1:
            raise ValueError(f"recompute_every={self.recompute_every}: use 1 or more steps, or None for never.")
        if self.powersgd != PowerSGDOptions() and self.compression != "powersgd":
            raise ValueError(f"powersgd={self.powersgd}: has no effect with compression={self.compression!r}.")

    def choices(self, loss: Any, *, precision: str, name: str = "") -> list[choices.Choice]:
        """Those that need something of others, or take something away.

        Args:
            loss: of the run.
            precision: of the runtime.
            name: what a config calls the loss.
        """
        made = [
            self.ordered and choices.in_order(),
            self.exact_batch_norm and choices.exact_batch_norm(),
            is_coupled(loss) and choices.coupled_loss(name or type(loss).__name__),
            self.compression in ("fp16", "bf16") and choices.compression(self.compression),
            self.compression == "powersgd" and choices.power_sgd(),
            self.halves_micro_batches and choices.halving(),
            self.recompute_every is not None and choices.recomputation(self.recompute_every),
            self.reduction is not None and choices.own_reduction(),
            self.sharpness_aware and choices.sharpness_aware(self.sharpness_aware.rho, self.sharpness_aware.by),
            precision == "fp64" and choices.double_precision(),
            precision == "fp16" and choices.scaled_losses(),
        ]
        return [choice for choice in made if choice]

    def refused(self, loss: Loss, *, precision: str) -> dict[Measures, str]:
        """What no step can measure beside such a gradient, each with the error."""
        chosen = self.choices(loss, precision=precision)
        norms = choices.Choice(str(Measures.NORMS), needs=choices.noise_scale(1).needs)
        errors = "\n".join(choices.conflicts([norms, *chosen]))
        return {Measures.NORMS: errors} if errors else {}


def choose_gradient(
    runtime: Runtime, model: nn.Module, loss: Loss, batches: BatchStream, options: GradientOptions
) -> Gradient:
    """The gradient of one global batch after the other.

    Args:
        runtime: the job.
        model: as `runtime.wrap` returned it.
        loss: sums per sample; may be a `CoupledLoss`.
        batches: where micro-batches come from.
        options: in which way.

    Raises:
        ValueError: if some of it does not go together, see `conflicts`; or there is no batch norm to be exact.
    """
    chosen = options.choices(loss, precision=runtime.precision)
    if runtime.device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        switch = "torch.use_deterministic_algorithms"
        chosen.append(choices.varying_kernels(f"{switch}(False)", f"{switch}(True)"))
    choices.require_no_conflict(chosen)
    module = runtime.unwrap(model)
    clock = ReductionClock(runtime, is_distributed=model is not module)
    norms = ExactBatchNorm(runtime, module) if options.exact_batch_norm else None
    leaves_out = options.skips_parameters and (options.ordered or model is not module)
    skipped = SkippedParameters(runtime, model) if leaves_out else None
    reduction = _reduction(runtime, model, clock, skipped, options)
    local = _local_pass(runtime, module, loss, norms, ordered=options.ordered)
    if options.sharpness_aware is not None:
        local = _ascending(runtime, module, local, options.sharpness_aware, clock)
    if options.halves_micro_batches:
        local = IfItFits(runtime, module, local)
    statistics = RunningStatistics(runtime, module, exact=norms.norms if norms else ())
    computing = BeingComputed(together=local.is_joint)
    noise = MicroBatchNorms(runtime, module, scale=reduction.scale, groups=options.groups, geometry=options.geometry)
    split, buckets = SplitMicroBatch(runtime, module, loss, noise), BucketOrder(reduction)
    buffers = StepBuffers(module, options.step_buffers)
    views = BucketViews(runtime, model, reduction, buckets)
    instruments: list[Instrument] = [views, statistics, computing, noise, split, buckets, buffers]
    if options.recompute_every is not None:
        assert isinstance(reduction, Overlapped), "others have no part of their own to compute twice"
        instruments.insert(2, Recomputation(runtime, local, reduction, buffers, every=options.recompute_every))
    if skipped is not None:
        instruments.append(skipped)
    fixed = loss.fixed_units if options.fixed_units is None else options.fixed_units
    gradient = GlobalGradient(
        batches,
        Units(runtime, loss, fixed=fixed, clock=clock),
        local,
        reduction,
        clock,
        statistics,
        computing,
        noise,
        instruments,
        stored={"bucket_order": buckets, "split": split},
    )
    return Halving(gradient, module) if options.halves_micro_batches else gradient


def _ascending(
    runtime: Runtime, module: nn.Module, local: LocalPass, how: SharpnessAware, clock: ReductionClock
) -> LocalPass:
    return (
        AscentOfAll(module, local, how, clock) if how.by == "global" else AscentOfEach(runtime, module, local.loss, how)
    )


def _reduction(
    runtime: Runtime,
    model: nn.Module,
    clock: ReductionClock,
    skipped: SkippedParameters | None,
    options: GradientOptions,
) -> Reduction:
    if options.reduction is not None:
        return options.reduction(runtime, model, clock)
    most_bytes = int(options.bucket_mb * 2**20)
    if options.ordered:
        return InOrder(runtime, model, clock, most_bytes=most_bytes)
    if options.exact_batch_norm or options.halves_micro_batches:
        return Afterwards(runtime, runtime.unwrap(model), clock, most_bytes=most_bytes)
    with_power_sgd = options.compression == "powersgd"
    power_sgd = PowerSGD(runtime, options.powersgd, runtime.unwrap(model)) if with_power_sgd else None
    return Overlapped(runtime, model, clock, compression=options.compression, power_sgd=power_sgd, skipped=skipped)


def accumulate_gradients(
    runtime: Runtime,
    model: nn.Module,
    loss: Any,
    micro_batches: Iterable[Any],
    *,
    plan: BatchPlan,
    num_units: float,
    random_key: int,
    norms: ExactBatchNorm | None = None,
) -> Tensor:
    """The gradient of the mean loss over one global batch, in a loop of your own.

    `.grad` is that of the mean over the whole global batch, however it is cut and shared.

    Args:
        runtime: the job.
        model: as returned by `runtime.wrap`; its gradients are zero or None. With `zero_grad(set_to_none=False)`
            between batches, micro-batches add up in DDP's buckets, and need no gradient of their own in memory.
        loss: sums per sample; may be a `CoupledLoss`.
        micro_batches: this rank's part of the global batch, with the attributes of `MicroBatch`; consumed one by
            one, so that only one is in memory.
        plan: how the batch is cut and shared.
        num_units: samples, or valid tokens, of the whole global batch.
        random_key: draws inside the model are keyed by it and by the micro-batch's index, not by the rank.
        norms: the model's, if batch norm is taken over the whole global batch.

    Returns:
        The sum of the loss over this rank's samples, float64 scalar on the device.

    Raises:
        RuntimeError: if a parameter is in no pass, and DDP would wait for it.
    """
    module = runtime.unwrap(model)
    local = _local_pass(runtime, module, loss, norms)
    reduction: Reduction = Overlapped(runtime, model, None)
    if norms is not None:
        reduction = Afterwards(runtime, module, most_bytes=int(BUCKET_MB * 2**20))
    reduction.begin(plan)
    step = Step(1, 0, plan, lr=0.0, random_key=random_key)
    loss_sum = local(step, iter(micro_batches), reduction.scale / (num_units or 1), reduction)
    reduction.finish()
    return loss_sum


def _local_pass(
    runtime: Runtime, module: nn.Module, loss: Any, norms: ExactBatchNorm | None, *, ordered: bool = False
) -> LocalPass:
    couples = is_coupled(loss)
    if norms is not None:
        return SideBySide(runtime, module, loss, norms, couples=couples)
    return Twice(runtime, module, loss, shared=not ordered) if couples else OneByOne(runtime, loss)
