"""How much memory the weights of a model take, before there is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from largebatch.machine_memory import require_memory
from largebatch.targets import make

# Where making a model twice has no other effect; classes of the user's own may read files, or count themselves.
_MADE_BY_ARITHMETIC = ("largebatch.models.", "torch.nn.")
_FETCHED = "largebatch.models.hugging_face"


def require_memory_for_weights(node: Mapping[str, Any]) -> None:
    """Raise ValueError for a model of ours, or of torch, whose weights alone are larger than the memory there is.

    It is made without storage for that. Models of others pass, and whatever cannot be made: that is told when it is
    made in earnest.
    """
    if not all(name.startswith(_MADE_BY_ARITHMETIC) and name != _FETCHED for name in _targets(node)):
        return
    try:
        with torch.device("meta"):
            num_bytes = sum(parameter.nbytes for parameter in make("model", node).parameters())
    except Exception:
        return
    require_memory("its weights", num_bytes)


def _targets(node: Any) -> Iterator[str]:
    """Names of the model and of the models inside of it."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for part in node.values():
            yield from _targets(part)
    elif isinstance(node, list):
        for part in node:
            yield from _targets(part)
