"""Makes the loss of a config: from largebatch, from torch, or the user's own."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from largebatch.losses import Loss, ModuleLoss
from largebatch.losses.function_loss import FunctionLoss
from largebatch.run.config.schema import TrainConfig
from largebatch.run.config.targets import (
    TargetError,
    arguments_of,
    check_arguments,
    find_target,
    make,
    needed_arguments,
)

# torch's functions that have a class, whose mean is known.
_CLASSES = {
    "binary_cross_entropy": "BCELoss",
    "binary_cross_entropy_with_logits": "BCEWithLogitsLoss",
    "cross_entropy": "CrossEntropyLoss",
    "huber_loss": "HuberLoss",
    "kl_div": "KLDivLoss",
    "l1_loss": "L1Loss",
    "mse_loss": "MSELoss",
    "multi_margin_loss": "MultiMarginLoss",
    "multilabel_soft_margin_loss": "MultiLabelSoftMarginLoss",
    "nll_loss": "NLLLoss",
    "smooth_l1_loss": "SmoothL1Loss",
    "soft_margin_loss": "SoftMarginLoss",
}
_MEMBERS = ("unit", "fixed_units", "loss_per_sample", "units_per_sample", "correct_per_sample")
_OWN = (
    "Choose a class of largebatch.losses or of torch.nn, name a function f(outputs, targets) -> [n], give a module a "
    "`reduction` (with 'none' it returns the loss of each sample, with 'mean' their mean), or write a class with the "
    "methods of `largebatch.losses.Loss`, ten lines: loss_per_sample(outputs, targets) -> [n] and "
    "units_per_sample(targets) -> [n]. A single number per micro-batch cannot be used: the mean over unequal "
    "micro-batches is not the mean of the global batch."
)


def named_loss(config: TrainConfig) -> Loss:
    """Make the loss of the config.

    Raises:
        TargetError: if it cannot be made, or has no loss per sample.
    """
    node = dict(config.loss)
    target = find_target("loss", node)
    name = str(node["_target_"]).rpartition(".")[2]
    if name in _CLASSES and target is getattr(F, name):
        node["_target_"], target = f"torch.nn.{_CLASSES[name]}", getattr(nn, _CLASSES[name])
    if not inspect.isclass(target) and "_partial_" not in node and (needed := needed_arguments(target, node)):
        return _of_function(target, node, needed)
    if inspect.isclass(target) and issubclass(target, nn.Module):
        # torch takes tensors of the outputs' kind; in a config they are lists, of whole numbers, too.
        kind = torch.get_default_dtype()
        lists = [key for key in ("weight", "pos_weight") if isinstance(node.get(key), list)]
        node |= {key: torch.tensor(node[key], dtype=kind) for key in lists}
    made = make("loss", node)
    absent = [name for name in _MEMBERS if not hasattr(made, name)]
    if not absent:
        return _without_parameters(made)
    if isinstance(made, nn.Module) and hasattr(made, "reduction"):
        return _of_module(made, node)
    raise TargetError(
        f"loss._target_={node['_target_']}: a {type(made).__name__} has no {', '.join(absent)}"
        f"{', and no reduction' * isinstance(made, nn.Module)}. {_OWN}"
    )


def _of_module(module: nn.Module, node: dict[str, Any]) -> Loss:
    try:
        return ModuleLoss(module)
    except ValueError as error:
        raise TargetError(f"loss._target_={node['_target_']}: {error}") from None


def _of_function(target: Any, node: dict[str, Any], needed: list[str]) -> Loss:
    """The loss of a function f(outputs, targets, ...); see `FunctionLoss`."""
    if len(needed) != 2:
        raise TargetError(
            f"loss._target_={node['_target_']}: a function that needs {', '.join(needed)}; a loss is a function of "
            f"outputs and targets alone. {_OWN}"
        )
    check_arguments("loss", node, supplied=tuple(needed))
    return _of_module(FunctionLoss(target, **arguments_of(node)), node)


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
