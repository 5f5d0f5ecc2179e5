"""A few steps of a run: once in plain torch on one process, and once by the package on the ranks of a job."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from largebatch.batch.plan import BatchPlan
from largebatch.batch.random_keys import stream_key
from largebatch.data import MicroBatchData
from largebatch.distributed.generators import seed_generators
from largebatch.distributed.runtime import Runtime
from largebatch.experiments.verify.plain_ascent import at_raised_weights
from largebatch.experiments.verify.planted import Defect
from largebatch.gradient.accumulation import forward
from largebatch.losses.coupled import is_coupled
from largebatch.losses.protocol import prediction
from largebatch.models.modes import train_mode
from largebatch.run.initial_state import build_optimizer
from largebatch.run.parts import build_loader, build_run, own_copy
from largebatch.run.prepare import Prepared
from largebatch.training.loop import Observer, Run, train
from largebatch.training.step_report import StepReport


@dataclass
class Trajectory:
    """The tensors to compare, by parameter name, on the CPU.

    Attributes:
        gradient: of the first global batch, as the optimizer saw it.
        weights: after the last step.
        statistics: running statistics of batch norm after the last step, by name of the buffer.
    """

    gradient: dict[str, Tensor]
    weights: dict[str, Tensor]
    statistics: dict[str, Tensor] = field(default_factory=dict)


class Change(Protocol):
    """A change of a model's numbers while it trains."""

    def changed_in(self, model: nn.Module) -> AbstractContextManager[None]:
        """Apply the change inside the block."""


def reference_trajectory(
    prepared: Prepared, plan: BatchPlan, *, num_steps: int, change: Change | None = None
) -> Trajectory:
    """Train `num_steps` steps in plain torch: no process group, nothing of the package's loop or reductions.

    The loss of a step is the sum over its micro-batches, divided by the units of the whole batch; see
    `units_by_own_mean`. Exact batch norm needs a plan of one micro-batch: it stands for one big batch.

    Args:
        prepared: the run; its model is copied.
        plan: the micro-batches, of one rank.
        num_steps: optimizer steps.
        change: of the model's numbers, to measure its effect.
    """
    model = copy.deepcopy(prepared.model)
    if prepared.config.precision.compute == "fp64":
        model = model.double()
    with nullcontext() if change is None else change.changed_in(model):
        return _plain_steps(prepared, model, plan, num_steps)


def _plain_steps(prepared: Prepared, model: nn.Module, plan: BatchPlan, num_steps: int) -> Trajectory:
    config = prepared.config
    optimizer = build_optimizer(config, model)
    batches = build_loader(prepared, 0, plan=plan, num_workers=0).micro_batches(0, num_steps)
    result = Trajectory({}, {})
    train_mode(model)
    for step in range(num_steps):
        position = step * plan.global_batch_size
        for group in optimizer.param_groups:
            group["lr"] = prepared.numbers.lr_at(position) * group.get("lr_factor", 1.0)
        clip_norm, scaled = config.clip_norm, prepared.scaled_groups
        if scaled is not None:
            scaled.write(optimizer, position)
            clip_norm = scaled.clip_norm_at(position)
        optimizer.zero_grad()
        parts = [next(batches) for _ in plan.micro_batch_sizes]
        if is_coupled(prepared.loss):
            _coupled_loss(prepared, model, parts).backward()
            units = sum(float(prepared.loss.units_per_sample(part.targets).sum()) for part in parts)
        else:
            units = _backward(prepared, model, [one for one in parts if not one.is_placeholder])
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(units or 1)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        if step == 0:
            result.gradient = gradients_of(model)
        optimizer.step()
    result.weights, result.statistics = _weights_of(model), _statistics_of(model)
    return result


def _backward(prepared: Prepared, model: nn.Module, parts: Sequence[MicroBatchData]) -> float:
    """Add the gradient of the summed losses of a step to `.grad`, and return their units."""
    sam = prepared.config.sam
    kept = dict(model.named_buffers()) | dict(model.named_parameters())

    def passes(of: Sequence[MicroBatchData], start: Mapping[str, Tensor]) -> float:
        units = 0.0
        for part in of:
            for name, value in start.items():
                kept[name].detach().copy_(value)
            outputs, targets = _outputs_and_targets(prepared, model, part)
            prepared.loss.loss_per_sample(outputs, targets).sum().backward()
            units += units_by_own_mean(prepared.loss, outputs, targets)
        return units

    def now() -> dict[str, Tensor]:
        return {name: kept[name].detach().clone() for name in prepared.state.by_step}

    start = now()
    if sam.rho is None:
        return passes(parts, start)
    if sam.is_global:
        return at_raised_weights(model, lambda: passes(parts, now()), rho=sam.rho, adaptive=sam.adaptive)
    units = 0.0
    for part in parts:
        for name, value in start.items():
            kept[name].detach().copy_(value)
        units += at_raised_weights(model, partial(passes, [part], {}), rho=sam.rho, adaptive=sam.adaptive)
    return units


@torch.no_grad()
def units_by_own_mean(loss: Any, outputs: Any, targets: Tensor) -> float:
    """The divisor of a micro-batch's summed losses, from the mean of torch or of the module that was given.

    Not from the run's own loss: an error in its count would be on both sides of the comparison.
    """
    counted = float(loss.units_per_sample(targets).sum())
    if (mean_of := getattr(loss, "mean_of", None)) is None:
        return counted
    wide = prediction(outputs).double()
    mean, total = float(mean_of(wide, targets)), float(loss.loss_per_sample(wide, targets).double().sum())
    return total / mean if mean and math.isfinite(mean) else counted  # nothing counts, or nothing is lost


def _coupled_loss(prepared: Prepared, model: nn.Module, parts: list[MicroBatchData]) -> Tensor:
    """A loss over the whole global batch, with the graphs of all micro-batches in memory."""
    outputs, targets = zip(*(_outputs_and_targets(prepared, model, part) for part in parts), strict=True)
    return prepared.loss.loss_per_sample(torch.cat(outputs), torch.cat(targets)).sum()


def _outputs_and_targets(prepared: Prepared, model: nn.Module, part: MicroBatchData) -> tuple[Any, Tensor]:
    inputs, targets = in_precision(prepared, part)
    key = stream_key(prepared.config.seed, "forward", part.samples_seen)
    seed_generators(stream_key(key, "micro-batch", part.index))
    return forward(model, inputs), targets


def in_precision(prepared: Prepared, batch: MicroBatchData) -> tuple[Any, Tensor]:
    """Inputs and targets of a micro-batch; floating-point ones in double precision where the run computes in it."""

    def widened(value: Tensor) -> Tensor:
        is_double = prepared.config.precision.compute == "fp64" and value.is_floating_point()
        return value.double() if is_double else value

    if isinstance(batch.inputs, dict):
        return {name: widened(value) for name, value in batch.inputs.items()}, widened(batch.targets)
    return widened(batch.inputs), widened(batch.targets)


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients by name; zeros where there is none."""
    return {
        name: (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).detach().cpu().clone()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def _weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu().clone() for name, parameter in module.named_parameters()}


def _statistics_of(module: nn.Module) -> dict[str, Tensor]:
    norms = [(name, one) for name, one in module.named_modules() if isinstance(one, _NormBase)]
    return {
        f"{name}.{key}".lstrip("."): buffer.detach().cpu().clone()
        for name, norm in norms
        for key, buffer in norm.named_buffers()
    }


class _FirstGradient(Observer):
    """Keeps the gradient of the first step."""

    def __init__(self) -> None:
        self.gradient: dict[str, Tensor] = {}

    def after_step(self, run: Run, report: StepReport) -> None:
        """The gradients stay in place until the next step begins."""
        if report.step == 1:
            self.gradient = gradients_of(run.module)


def package_trajectory(
    prepared: Prepared, runtime: Runtime, plan: BatchPlan, *, num_steps: int, defect: Defect | None = None
) -> Trajectory:
    """Train `num_steps` steps with the package's loop on the ranks of `runtime`; see `reference_trajectory`.

    A defect is planted into the loop to see whether it is found.
    """
    own, first = own_copy(prepared), _FirstGradient()
    own.place_losses(runtime.device)
    if defect is not None:
        own = replace(own, loss=defect.loss(own.loss, plan, runtime.rank))
    loader = build_loader(prepared, runtime.rank, plan=plan, num_workers=0)
    run = build_run(own, runtime, loader, plan=plan, num_steps=num_steps, observers=[first])
    if defect is not None and defect.plant is not None:
        defect.plant(run)
    train(run)
    run.gradient.statistics.merge()
    return Trajectory(first.gradient, _weights_of(run.module), _statistics_of(run.module))
