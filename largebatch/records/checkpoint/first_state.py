"""The state that an optimizer has after a few steps, taken with parameters without storage."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.optim.uncompiled import without_compiler

EXECUTION_OPTIONS = frozenset({"foreach", "fused", "compile", "capturable", "differentiable"})
"""Options of torch's optimizers that say how a machine computes a step, not which step: never saved."""

MEMBERS = frozenset({"params", "param_names"})
_MOST_NUMBERS = 2**22


def stepped_twin(
    optimizer: Optimizer, groups: list[dict[str, Any]], *, steps: int = 1, options: Mapping[str, Any] | None = None
) -> Optimizer:
    """An optimizer of the same class over new parameters, after so many steps on gradients of ones.

    Args:
        optimizer: gives the class and the defaults.
        groups: like those of `optimizer`, with new parameters, on the device "meta" or a real one.
        steps: how many to take.
        options: replace the defaults.

    Raises:
        Exception: whatever the class raises that reads values, or cannot be made from its defaults.
    """
    known = inspect.signature(type(optimizer)).parameters  # torch's AdamW has a default that it does not take
    asked = {**optimizer.defaults, **(options or {})}
    given = {name: value for name, value in asked.items() if name in known.keys() - EXECUTION_OPTIONS}
    with without_compiler():
        twin = type(optimizer)(groups, **given)
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    for _ in range(steps):
        take_step(twin)
    return twin


def take_step(twin: Optimizer) -> None:
    """Take a step of an optimizer that nobody else uses.

    It bypasses the wrapper of torch's own `step`, which imports torch's compiler: that takes longer than importing
    torch.
    """
    step = type(twin).step
    with torch.no_grad():
        inspect.unwrap(step)(twin) if step.__module__.startswith("torch.optim.") else twin.step()


def state_after_two_steps(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The state of each parameter by name, without entries that change their form from step to step.

    One parameter of each form in a group is stepped, with storage where that costs little: an optimizer may read
    values. Empty for an optimizer of others that cannot be stepped so.
    """
    names = {parameter: name for name, parameter in parameters.items()}
    forms: list[dict[Any, list[str]]] = []  # of each group: (shape, dtype) -> names of its parameters
    for group in optimizer.param_groups:
        forms.append({})
        for one in group["params"]:
            forms[-1].setdefault((one.shape, one.dtype), []).append(names[one])
    members = [alike for of_group in forms for alike in of_group.values()]
    size = sum(math.prod(shape) for of_group in forms for shape, _ in of_group)
    for device in ("cpu", "meta") if size <= _MOST_NUMBERS else ("meta",):
        try:
            states = _states_of_twin(optimizer, forms, device)
        except Exception:
            continue
        if len(states) != len(members):
            return {}
        return {name: state for alike, state in zip(members, states, strict=True) for name in alike}
    return {}


def _states_of_twin(optimizer: Optimizer, forms: list[dict[Any, list[str]]], device: str) -> list[dict[str, Any]]:
    """The state of one parameter of each form, without entries that have another form after the second step."""
    groups = []
    for group, of_group in zip(optimizer.param_groups, forms, strict=True):
        options = {key: value for key, value in group.items() if key not in MEMBERS | EXECUTION_OPTIONS}
        own = copy.deepcopy(options)  # a step may move them in place
        few = [nn.Parameter(torch.zeros(shape, dtype=dtype, device=device)) for shape, dtype in of_group]
        given = {"param_names": [alike[0] for alike in of_group.values()]} if "param_names" in group else {}
        groups.append({**own, **given, "params": few})
    twin = stepped_twin(optimizer, groups)
    parameters = [one for group in twin.param_groups for one in group["params"]]
    first = [{key: state_form(value) for key, value in twin.state.get(one, {}).items()} for one in parameters]
    take_step(twin)
    return [
        {key: value for key, value in twin.state.get(one, {}).items() if before.get(key) == state_form(value)}
        for before, one in zip(first, parameters, strict=True)
    ]


def state_form(value: Any) -> str:
    """The form of a state: of a tensor dtype and shape, of anything else its type."""
    if isinstance(value, Tensor):
        return f"tensor {form(value)}"
    return type(value).__name__


def form(tensor: Tensor) -> str:
    """Dtype and shape of a tensor.

    >>> form(torch.zeros(2, 3))
    'float32 [2, 3]'
    """
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
