"""Tries a training step: forward and backward pass in training mode."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.batch.random_keys import stream_key
from largebatch.data import Augmentation
from largebatch.distributed.generators import seed_generators
from largebatch.gradient.accumulation import copies
from largebatch.losses import Loss
from largebatch.models.label_shift import require_decoder_inputs
from largebatch.models.modes import train_mode
from largebatch.run.checks.dry_run.as_before import as_before
from largebatch.run.checks.dry_run.labels import check_labels, scored_batch
from largebatch.run.checks.dry_run.passes import MisfitError, explained, named, outputs_of
from largebatch.run.checks.dry_run.samples import TriedBatch, as_given, device_of, in_pairs, repeated, tried_batches
from largebatch.run.checks.dry_run.state import KeptState, find_state
from largebatch.run.checks.memory import state_of
from largebatch.run.config.schema import TrainConfig
from largebatch.run.derive import RunNumbers

_DRAWS = 8  # passes until a module that is skipped at random has most likely been used


def try_training(
    config: TrainConfig, numbers: RunNumbers, dataset: Any, augment: Augmentation | None, model: nn.Module, loss: Loss
) -> KeptState:
    """Forward and backward pass of the smallest and the largest micro-batch, in the precision of the run.

    Returns:
        the state that passes change, seen in the largest micro-batch.

    Raises:
        ValueError: if something fails or does not fit, a gradient cannot be reduced, or a parameter gets none.
    """
    with as_before(model):
        train_mode(model)
        batches = list(tried_batches(config, numbers, dataset, augment, model, loss))
        states = [_try_batch(config, numbers, dataset, model, loss, batch) for batch in batches]
        if len(batches) == 1:  # in a run another pass follows: state left by the first must not break it
            _backward(config, dataset, model, loss, batches[0], draw=1)
    state = dataclasses.replace(states[-1], changes_inputs=any(state.changes_inputs for state in states))
    if states[0].absent != state.absent:
        state = dataclasses.replace(state, choices=(*state.choices, "the size of a micro-batch"))
    absent = [name for name in state.absent if name in states[0].absent]
    if absent and not state.choices:
        raise ValueError(
            f"{len(absent)} parameters get no gradient, e.g. {', '.join(absent[:3])}: the all-reduce would wait for "
            "them forever. Remove them, or freeze them with requires_grad=False."
        )
    return dataclasses.replace(state, absent=tuple(absent))


def _try_batch(
    config: TrainConfig, numbers: RunNumbers, dataset: Any, model: nn.Module, loss: Loss, batch: TriedBatch
) -> KeptState:
    parameters = dict(model.named_parameters())
    layout = _layout(model)
    require_decoder_inputs(loss, model, batch.inputs)
    try:
        changes_inputs = _backward(config, dataset, model, loss, batch, draw=0)
    except MisfitError as error:
        if batch.size == 1 and _passes(config, dataset, model, loss, repeated(batch, 2)):
            raise ValueError(f"{error.fact} {in_pairs(config, numbers)}") from error
        raise
    _require_same_members(model, parameters, layout)
    unused = {name for name, one in parameters.items() if one.requires_grad and one.grad is None}
    _require_reducible_all(config, model, batch)
    model.zero_grad()  # their memory: the next passes hold copies of the weights
    state = find_state(model, loss, batch, precision=config.precision.compute, seed=config.seed)
    absent = _absent(config, dataset, model, loss, batch, unused)
    return dataclasses.replace(state, absent=tuple(absent), changes_inputs=changes_inputs)


def fails_alone(
    config: TrainConfig, numbers: RunNumbers, dataset: Any, augment: Augmentation | None, model: nn.Module, loss: Loss
) -> bool:
    """Whether a micro-batch of one sample fails where two of them pass, as with batch statistics."""
    with as_before(model):
        train_mode(model)
        batch = next(tried_batches(config, numbers, dataset, augment, model, loss))
        return not _passes(config, dataset, model, loss, repeated(batch, 1)) and _passes(
            config, dataset, model, loss, repeated(batch, 2)
        )


def _passes(config: TrainConfig, dataset: Any, model: nn.Module, loss: Loss, batch: TriedBatch) -> bool:
    try:
        _backward(config, dataset, model, loss, batch, draw=0)
    except ValueError:
        return False
    return True


def _backward(config: TrainConfig, dataset: Any, model: nn.Module, loss: Loss, batch: TriedBatch, *, draw: int) -> bool:
    """One forward and backward pass, which leaves its gradient. Returns whether it wrote to its (copied) inputs."""
    precision = config.precision.compute
    model.zero_grad()
    seed_generators(stream_key(config.seed, "trial", draw), device_of(model))
    inputs, targets = copies(as_given(batch.inputs, model, precision)), as_given(batch.targets, model, precision)
    parts = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    versions = [part._version for part in parts]
    with explained(model, batch, during="the forward pass in training mode"):
        outputs = outputs_of(model, inputs, precision)
    with explained(model, batch, during="the loss in training mode"):
        total = scored_batch(batch, outputs, targets, loss).sum()
    check_labels(dataset, model, outputs, targets, loss)
    _require_number(config, total, batch)
    with explained(model, batch, during="the backward pass"):
        total.backward()
    return [part._version for part in parts] != versions


def _require_number(config: TrainConfig, total: Tensor, batch: TriedBatch) -> None:
    value = float(total.detach())
    if not math.isfinite(value) and not config.guard.acts:
        raise ValueError(
            f"the loss of {named(batch)} is {value} at the initial weights: the run would end as diverged. Check these "
            "inputs and targets, the model and the loss; data.on_bad_sample=skip leaves out samples with NaN or "
            "infinity."
        )


def _layout(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state_of(model).items() if isinstance(value, Tensor)}


def _require_same_members(model: nn.Module, parameters: dict[str, nn.Parameter], state: dict[str, list[int]]) -> None:
    """Refuse a pass that changes parameters or state: the optimizer has the first ones, a checkpoint the last."""
    now = dict(model.named_parameters())
    changed = [name for name in now if now[name] is not parameters.get(name)] + [*(parameters.keys() - now.keys())]
    if changed:
        raise ValueError(
            f"a forward pass makes, replaces or removes {len(changed)} parameters, e.g. {', '.join(changed[:3])}: the "
            "optimizer would not train them. Make them in __init__, or with torch's lazy modules (torch.nn.LazyLinear)."
        )
    after = _layout(model)
    others = [name for name, shape in after.items() if state.get(name) != shape]
    others += [*(state.keys() - after.keys())]
    if others:
        changes = ", ".join(f"{name} {state.get(name, 'absent')} -> {after.get(name, 'absent')}" for name in others[:3])
        raise ValueError(
            f"a forward pass changes names or shapes in the model's state ({changes}): a new model could not load a "
            "checkpoint of it. Register buffers in __init__ with their final shape, or with persistent=False."
        )


def _absent(
    config: TrainConfig, dataset: Any, model: nn.Module, loss: Loss, batch: TriedBatch, unused: set[str]
) -> list[str]:
    """Trainable parameters without a gradient in all of `_DRAWS` passes: modules may be skipped at random."""
    parameters = dict(model.named_parameters())
    draw = 1
    while unused and draw < _DRAWS:
        _backward(config, dataset, model, loss, batch, draw=draw)
        _require_reducible_all(config, model, batch)
        unused = {name for name in unused if parameters[name].grad is None}
        draw += 1
    return [name for name in parameters if name in unused]


def _require_reducible_all(config: TrainConfig, model: nn.Module, batch: TriedBatch) -> None:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            _require_reducible(config, model, name, parameter.grad, batch)


def _require_reducible(config: TrainConfig, model: nn.Module, name: str, grad: Tensor, batch: TriedBatch) -> None:
    """Refuse sparse and non-finite gradients: sums over ranks, norms and trust ratios need dense numbers."""
    owner = model.get_submodule(name.rpartition(".")[0])
    if grad.layout != torch.strided:
        raise ValueError(
            f"{name} of {type(owner).__name__} gets a gradient of layout {grad.layout}: clipping, norms and the "
            "reduction over ranks need dense gradients. Make the module with sparse=False."
        )
    if not torch.isfinite(grad).all() and not config.guard.acts:
        raise ValueError(
            f"the gradient of {name} is not finite for {named(batch)} at the initial weights, but the loss is finite. "
            "Look for a square root, norm, logarithm or division at 0 in the model or the loss."
        )
