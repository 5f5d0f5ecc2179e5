"""Losses that a model computes besides what it returns to be scored: none may be dropped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from largebatch.losses.protocol import prediction

_LOSSES = ("loss", "aux", "penalt", "regulari", "balanc", "commit")
_SHORT = ("kl", "kld", "reg")  # as words of a name
_PARTS = re.compile(r"[^\W\d_]+")


def require_nothing_left_out(model: nn.Module, outputs: Any, *, are_losses: bool = False) -> None:
    """After a forward pass with a graph: whatever the model wants to be trained on must be what the loss takes.

    Looked for are what depends on weights: fields of `outputs` beside the logits that are single numbers or named as
    losses or logits, and what a module keeps under the name of a loss, in lists, too. Such are the balance of a mixture
    of experts, second heads, penalties. What the logits are computed from is trained on through them.

    Args:
        model: that made the outputs.
        outputs: of one pass.
        are_losses: the outputs are losses: what is computed from them is an account of them.

    Raises:
        ValueError: names them.
    """
    candidates = [(f"returns {name}", value) for name, value in _of_outputs(outputs)]
    candidates += [(f"keeps {name}", value) for name, value in _kept(model)]
    found = _apart(candidates, prediction(outputs), are_losses) if candidates else []
    if found:
        raise ValueError(
            f"{type(model).__name__} also {found[0]}{f' and {len(found) - 1} more' * (len(found) > 1)}, which "
            "depends on its weights and is no part of the loss: training would drop it. Either switch it off (a "
            "mixture of experts of transformers: output_router_logits=false in its config) and train without it, or "
            "include it: return from the model's forward the loss of every sample, [n], and choose loss=output. An "
            "auxiliary loss a of a micro-batch is then added to each of its samples' losses: the mean over the "
            "global batch weighs micro-batches by their samples. Pin them (batch.micro), since a belongs to a cut."
        )


def _apart(candidates: list[tuple[str, Tensor]], taken: Tensor, are_losses: bool) -> list[str]:
    """Names of the tensors that are no part of what `taken` is computed from."""
    within = _graph_of(taken)
    return [
        name
        for name, value in candidates
        if value.grad_fn not in within and not (are_losses and taken.grad_fn in _graph_of(value))
    ]


def _graph_of(value: Tensor) -> set[Any]:
    """All nodes of autograd that a tensor was computed by."""
    found: set[Any] = set()
    waiting = [value.grad_fn]
    while waiting:
        if (node := waiting.pop()) is not None and node not in found:
            found.add(node)
            waiting += [one for one, _ in node.next_functions]
    return found


def _of_outputs(outputs: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(outputs, Tensor):
        return
    named = getattr(outputs, "_asdict", None)
    fields = outputs if isinstance(outputs, Mapping) else named() if named else getattr(outputs, "__dict__", {})
    for name, value in fields.items():
        if name == "logits" or not isinstance(value, Tensor) or not value.requires_grad:
            continue
        if value.dim() == 0 or _is_loss(name) or "logits" in name.lower():
            yield name, value


def _kept(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        for name, kept in vars(module).items():
            # Others are kept to be looked at, such as the last logits or a temperature.
            if _is_loss(name):
                for value in kept.values() if isinstance(kept, dict) else kept if isinstance(kept, list) else [kept]:
                    if isinstance(value, Tensor) and value.grad_fn is not None:
                        yield f"{path}.{name}".lstrip("."), value


def _is_loss(name: str) -> bool:
    low = name.lower()
    return any(word in low for word in _LOSSES) or any(word in _SHORT for word in _PARTS.findall(low))
