"""Sizes of a model's weights and of its optimizer state, before they are allocated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from largebatch.distributed.host_memory import require_memory
from largebatch.records.checkpoint.first_state import state_after_two_steps
from largebatch.run.config.targets import make, target_nodes
from largebatch.training.raised import error_text

# Making these models twice has no side effect; the user's own classes may read files or count instances.
_MADE_BY_ARITHMETIC = ("largebatch.models.", "torch.nn.")
_FETCHED = "largebatch.models.hugging_face"


def require_memory_for_weights(node: Mapping[str, Any]) -> None:
    """Raise ValueError if the weights alone of a model of largebatch or torch exceed the memory of this machine.

    The model is made on the meta device for that. Other models pass; so do models that cannot be made: making them
    for real reports the error.
    """
    names = [str(one["_target_"]) for _, one in target_nodes(node)]  # also of the models inside it
    if not all(name.startswith(_MADE_BY_ARITHMETIC) and name != _FETCHED for name in names):
        return
    try:
        with torch.device("meta"), Undrawn():
            num_bytes = sum(parameter.nbytes for parameter in make("model", node).parameters())
    except Exception:
        return
    require_memory("its weights", num_bytes)


class Undrawn(TorchFunctionMode):
    """Skips random initialisation: on the meta device torch draws in Python, and imports its compiler for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "random_", "bernoulli_"):
            return args[0] if args else (kwargs or {})["tensor"]  # torch.nn.init passes itself first, by name
        return func(*args, **(kwargs or {}))


def state_of(model: nn.Module) -> dict[str, Any]:
    """The state_dict of the model, as a checkpoint would hold it.

    Raises:
        ValueError: if state_dict fails.
    """
    try:
        return dict(model.state_dict())
    except Exception as error:
        raise ValueError(
            f"its state_dict fails with {error_text(error)}: no checkpoint could be written. Correct it, or inherit it "
            "from torch.nn.Module."
        ) from error


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimizer's state after its first steps.

    0 if that is unknown: the user's optimizer reads values of tensors, or cannot be made from its defaults.
    """
    members = [one for group in optimizer.param_groups for one in group["params"]]
    states = state_after_two_steps(optimizer, {str(place): one for place, one in enumerate(members)})
    return sum(value.nbytes for state in states.values() for value in state.values() if torch.is_tensor(value))
