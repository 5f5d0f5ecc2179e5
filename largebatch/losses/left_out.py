"""Losses that a model computes besides what it returns to be scored: none may be dropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

_LOSSES = ("loss", "aux", "penalty")


def require_nothing_left_out(model: nn.Module, outputs: Any) -> None:
    """After a forward pass with a graph: whatever the model wants to be trained on must be what the loss takes.

    Looked for are what depends on weights: fields of `outputs` beside the logits that are single numbers or named as
    losses or logits, and single numbers kept on a module under the name of a loss. Such are the balance of a mixture of
    experts, second heads, penalties.

    Raises:
        ValueError: names them.
    """
    found = [f"returns {name}" for name in _of_outputs(outputs)] + [f"keeps {name}" for name in _kept(model)]
    if found:
        raise ValueError(
            f"{type(model).__name__} also {found[0]}{f' and {len(found) - 1} more' * (len(found) > 1)}, which "
            "depends on its weights and is no part of the loss: training would drop it. Either switch it off (a "
            "mixture of experts of transformers: output_router_logits=false in its config) and train without it, or "
            "include it: return from the model's forward the loss of every sample, [n], and choose loss=output. An "
            "auxiliary loss a of a micro-batch is then added to each of its samples' losses: the mean over the "
            "global batch weighs micro-batches by their samples. Pin them (batch.micro), since a belongs to a cut."
        )


def _of_outputs(outputs: Any) -> Iterator[str]:
    if isinstance(outputs, Tensor):
        return
    named = getattr(outputs, "_asdict", None)
    fields = outputs if isinstance(outputs, Mapping) else named() if named else getattr(outputs, "__dict__", {})
    for name, value in fields.items():
        if name != "logits" and isinstance(value, Tensor) and value.requires_grad and _is_for_training(name, value):
            yield name


def _kept(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            # Others are kept to be looked at, such as the last logits or a temperature.
            if (
                isinstance(value, Tensor)
                and value.grad_fn is not None
                and value.numel() == 1
                and _is_named(name, _LOSSES)
            ):
                yield f"{path}.{name}".lstrip(".")


def _is_for_training(name: str, value: Tensor) -> bool:
    return value.dim() == 0 or _is_named(name, (*_LOSSES, "logits"))


def _is_named(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name.lower() for word in words)
