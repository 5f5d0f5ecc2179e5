"""Auxiliary losses that a model computes beside its outputs: training must not drop one silently."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from largebatch.losses.protocol import prediction

_LOSSES = ("loss", "aux", "penalt", "regulari", "balanc", "commit")
_SHORT = ("kl", "kld", "reg")  # as whole words of a name
_PARTS = re.compile(r"[^\W\d_]+")


def require_no_dropped_loss(model: nn.Module, outputs: Any, *, are_losses: bool = False) -> None:
    """Refuse a model with an auxiliary loss that the chosen loss would drop, after a forward pass with a graph.

    Examples are the load balancing of a mixture of experts, second heads, penalties. The check finds tensors that
    depend on weights: fields of `outputs` beside the logits that are scalars or named as losses or logits, and
    attributes of modules named as losses, also inside lists. Tensors that the logits are computed from are trained
    through them, and pass.

    Args:
        model: the model that computed `outputs`.
        outputs: outputs of one forward pass.
        are_losses: the outputs are losses, so scalars computed from them only report them, and pass.

    Raises:
        ValueError: names the auxiliary losses.
    """
    candidates = [(f"returns {name}", value) for name, value in _of_outputs(outputs)]
    candidates += [(f"keeps {name}", value) for name, value in _kept(model)]
    found = _apart(candidates, prediction(outputs), are_losses) if candidates else []
    if found:
        raise ValueError(
            f"{type(model).__name__} also {found[0]}{f' and {len(found) - 1} more' * (len(found) > 1)}, which "
            "depends on its weights and is no part of the loss: training would drop it. Either switch it off (a "
            "mixture of experts of transformers: output_router_logits=false in its config) and train without it, or "
            "include it: return from the model's forward the loss of every sample, [n], and choose loss=output. Add an "
            "auxiliary loss of a micro-batch to the loss of each of its samples: the mean over the global batch then "
            "weighs micro-batches by their samples. Pin the micro-batch (batch.micro), since such a loss depends on it."
        )


def _apart(candidates: list[tuple[str, Tensor]], taken: Tensor, are_losses: bool) -> list[str]:
    """Names of the tensors that `taken` is not computed from."""
    within = _graph_of(taken)
    return [
        name
        for name, value in candidates
        if value.grad_fn not in within and not (are_losses and taken.grad_fn in _graph_of(value))
    ]


def _graph_of(value: Tensor) -> set[Any]:
    """All autograd nodes of a tensor's graph."""
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
            # Other attributes are kept for inspection, such as the last logits or a temperature.
            if _is_loss(name):
                for value in kept.values() if isinstance(kept, dict) else kept if isinstance(kept, list) else [kept]:
                    if isinstance(value, Tensor) and value.grad_fn is not None:
                        yield f"{path}.{name}".lstrip("."), value


def _is_loss(name: str) -> bool:
    low = name.lower()
    return any(word in low for word in _LOSSES) or any(word in _SHORT for word in _PARTS.findall(low))
