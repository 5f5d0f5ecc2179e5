"""How much the weights of a model and the state of its optimizer take, before there are any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from largebatch.distributed.host_memory import require_memory
from largebatch.records.checkpoint.first_state import state_after_two_steps
from largebatch.run.config.targets import make, target_nodes
from largebatch.training.raised import told

# Where making a model twice has no other effect; classes of the user's own may read files, or count themselves.
_MADE_BY_ARITHMETIC = ("largebatch.models.", "torch.nn.")
_FETCHED = "largebatch.models.hugging_face"


def require_memory_for_weights(node: Mapping[str, Any]) -> None:
    """Raise ValueError for a model of ours, or of torch, whose weights alone are larger than the memory there is.

    It is made without storage for that. Models of others pass, and whatever cannot be made: that is told when it is
    made in earnest.
    """
    names = [str(one["_target_"]) for _, one in target_nodes(node)]  # and of the models inside of it
    if not all(name.startswith(_MADE_BY_ARITHMETIC) and name != _FETCHED for name in names):
        return
    try:
        with torch.device("meta"), _Undrawn():
            num_bytes = sum(parameter.nbytes for parameter in make("model", node).parameters())
    except Exception:
        return
    require_memory("its weights", num_bytes)


class _Undrawn(TorchFunctionMode):
    """Leaves tensors without storage undrawn: torch draws those in Python, and imports its compiler for that."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "random_", "bernoulli_"):
            return args[0] if args else (kwargs or {})["tensor"]  # torch.nn.init passes itself first, by name
        return func(*args, **(kwargs or {}))


def state_of(model: nn.Module) -> dict[str, Any]:
    """What a checkpoint of the model would hold.

    Raises:
        ValueError: if the model does not tell.
    """
    try:
        return dict(model.state_dict())
    except Exception as error:
        raise ValueError(
            f"its state_dict fails with {told(error)}: no checkpoint could be written. Correct it, or leave it to "
            "torch.nn.Module."
        ) from error


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the state that an optimizer will have after its first steps.

    0 where that cannot be found out: for an optimizer of others that reads values, or cannot be made from its defaults.
    """
    members = [one for group in optimizer.param_groups for one in group["params"]]
    states = state_after_two_steps(optimizer, {str(place): one for place, one in enumerate(members)})
    return sum(value.nbytes for state in states.values() for value in state.values() if torch.is_tensor(value))
