"""Makes the loss of a config: from largebatch, from torch, or the user's own."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from torch import nn

from largebatch.losses import Loss, ModuleLoss
from largebatch.run.config.schema import TrainConfig
from largebatch.run.config.targets import TargetError, find_target, make, needed_arguments

_MEMBERS = ("unit", "fixed_units", "loss_per_sample", "units_per_sample", "correct_per_sample")
_OWN = (
    "Choose a class of largebatch.losses or of torch.nn, give a module a `reduction` (with 'none' it returns the "
    "loss of each sample, with 'mean' their mean), or write a class with the methods of `largebatch.losses.Loss`, ten "
    "lines: loss_per_sample(outputs, targets) -> [n] and units_per_sample(targets) -> [n]. A single number per "
    "micro-batch cannot be used: the mean over unequal micro-batches is not the mean of the global batch."
)


def named_loss(config: TrainConfig) -> Loss:
    """Make the loss of the config.

    Raises:
        TargetError: if it cannot be made, or has no loss per sample.
    """
    node = dict(config.loss)
    target = find_target("loss", node)
    if not inspect.isclass(target) and "_partial_" not in node and (needed := needed_arguments(target, node)):
        raise TargetError(
            f"loss._target_={node['_target_']}: a function of {', '.join(needed)}; the target is called once, without "
            f"them, to make the loss. In place of a function of torch.nn.functional name its class, e.g. "
            f"torch.nn.CrossEntropyLoss. {_OWN}"
        )
    if inspect.isclass(target) and issubclass(target, nn.Module):
        # torch takes tensors; in a config they are lists.
        node |= {key: torch.tensor(node[key]) for key in ("weight", "pos_weight") if isinstance(node.get(key), list)}
    made = make("loss", node)
    absent = [name for name in _MEMBERS if not hasattr(made, name)]
    if not absent:
        return _without_parameters(made)
    if isinstance(made, nn.Module) and hasattr(made, "reduction"):
        try:
            return ModuleLoss(made)
        except ValueError as error:
            raise TargetError(f"loss._target_={node['_target_']}: {error}") from None
    raise TargetError(
        f"loss._target_={node['_target_']}: a {type(made).__name__} has no {', '.join(absent)}"
        f"{', and no reduction' * isinstance(made, nn.Module)}. {_OWN}"
    )


def without_smoothing(loss: Any) -> Any:
    """The loss for both sides of the gap, without label smoothing, which belongs to training."""
    if isinstance(loss, ModuleLoss):
        return loss.without_smoothing()
    if dataclasses.is_dataclass(loss) and not isinstance(loss, type) and getattr(loss, "label_smoothing", False):
        return dataclasses.replace(loss, label_smoothing=0.0)
    return loss


def _without_parameters(loss: Any) -> Loss:
    if isinstance(loss, nn.Module) and any(one.requires_grad for one in loss.parameters()):
        raise TargetError(
            f"loss: {type(loss).__name__} has parameters to train, which the optimizer of a run does not have. Make "
            "it a part of the model, whose forward then returns the loss of every sample (loss=output)."
        )
    made: Loss = loss
    return made
