"""An optimizer's state by the names of its parameters, as tensors and plain JSON values.

`Optimizer.state_dict` numbers the parameters, so a model with other parameters can take over state that was never its
own; and `load_state_dict` rounds the float32 state of bfloat16 parameters. Neither happens here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from largebatch.records.checkpoint.first_state import EXECUTION_OPTIONS, MEMBERS
from largebatch.records.checkpoint.manifest import CheckpointError
from largebatch.records.checkpoint.optimizer_fit import matching_groups, option_key, tensor_key

_SCALARS = (str, int, float, bool, type(None))


def pack_optimizer(optimizer: Optimizer, names: Mapping[Tensor, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and options of `optimizer`: tensors, and plain JSON values.

    Args:
        optimizer: any whose `state[parameter]` is a dict of tensors and scalars. State elsewhere is not saved.
        names: name of each of its parameters, `{p: name for name, p in model.named_parameters()}`; more are ignored.

    Returns:
        The state tensors themselves, not copies, under `tensor_key(name, key)`; and the plain values. "not_saved" lists
        the options of a group that are neither scalars, lists of scalars nor tensors; `EXECUTION_OPTIONS` are left out.

    Raises:
        CheckpointError: if a parameter has no name of its own, or if its state holds anything but tensors and scalars.
    """
    tensors: dict[str, Tensor] = {}
    state: dict[str, Any] = {}
    for name, parameter in named_parameters(optimizer, names).items():
        if parameter in optimizer.state:
            entries = optimizer.state[parameter]
            _check_entries(optimizer, name, entries)
            keys = [key for key, value in entries.items() if isinstance(value, Tensor)]
            tensors |= {tensor_key(name, key): entries[key].detach() for key in keys}
            scalars = {key: value for key, value in entries.items() if key not in keys}
            state[name] = {"tensors": keys, "scalars": scalars}
    groups = []
    for number, group in enumerate(optimizer.param_groups):
        options = {key: group[key] for key in group.keys() - MEMBERS - EXECUTION_OPTIONS}
        keys = sorted(key for key, value in options.items() if isinstance(value, Tensor))
        tensors |= {option_key(number, key): options[key].detach() for key in keys}
        groups.append(
            {
                "shapes": {names[parameter]: list(parameter.shape) for parameter in group["params"]},
                "options": {key: listed(value) for key, value in sorted(options.items()) if _is_plain(value)},
                "tensors": keys,
                "not_saved": sorted(key for key, value in options.items() if not _is_plain(value) and key not in keys),
            }
        )
    return tensors, {"optimizer": type(optimizer).__name__, "groups": groups, "state": state}


def unpack_optimizer(
    optimizer: Optimizer,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    names: Mapping[Tensor, str],
    *,
    keeps: frozenset[str] = frozenset(),
    fetch: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> None:
    """Give `optimizer` the state and options that `pack_optimizer` returned, bit for bit.

    Each state tensor keeps the dtype that it was saved with and goes to the device of its parameter; "step" stays on
    the CPU, unless the group is `fused` or `capturable`. The order of groups and parameters does not matter.

    Args:
        optimizer: of the same class, with the same parameters in the same groups; changed in place, or not at all.
        tensors: of the state; they are copied.
        values: the plain values that belong to them.
        names: as for `pack_optimizer`.
        keeps: options whose values stay the optimizer's own: they were changed on purpose.
        fetch: makes values of each tensor as it is taken, one at a time and in the order of the optimizer's groups:
            those of another rank, where `tensors` lie on the device "meta".

    Raises:
        CheckpointError: for anything that `pack_optimizer` would not have made of such an optimizer.
    """
    saved_groups = matching_groups(optimizer, tensors, values, named_parameters(optimizer, names), keeps=keeps)
    optimizer.state.clear()  # in place: an optimizer may be made of others that share its state and groups
    for group, (number, saved) in zip(optimizer.param_groups, saved_groups, strict=True):
        for key, value in saved["options"].items():
            if key not in keeps:
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
        for key in saved["tensors"]:
            device = group[key].device if isinstance(group.get(key), Tensor) else "cpu"
            group[key] = fetch(tensors[option_key(number, key)]).to(device, copy=True)
        for parameter in group["params"]:
            name = names[parameter]
            if name in values["state"]:
                entries = values["state"][name]
                is_on_device = bool(group.get("fused") or group.get("capturable"))
                optimizer.state[parameter] = {
                    key: _placed(fetch(tensors[tensor_key(name, key)]), parameter, key == "step" and not is_on_device)
                    for key in entries["tensors"]
                } | entries["scalars"]


def named_parameters(optimizer: Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The parameters of an optimizer by name.

    Raises:
        CheckpointError: if one has no name of its own.
    """
    parameters: dict[str, Tensor] = {}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            name = names.get(parameter)
            if name is None or name in parameters:
                fact = "no name" if name is None else f"the name {name!r} of another one"
                raise CheckpointError(
                    f"A parameter of shape {list(parameter.shape)} in group {number} of {type(optimizer).__name__} has "
                    f"{fact}. State is saved by name: pass the names of the model that the optimizer was made for."
                )
            parameters[name] = parameter
    return parameters


def _check_entries(optimizer: Optimizer, name: str, entries: Mapping[Any, Any]) -> None:
    for key, value in entries.items():
        if type(key) is not str or not (isinstance(value, Tensor) or type(value) in _SCALARS):
            raise CheckpointError(
                f"The state {key!r} of {name} in {type(optimizer).__name__} is a {type(value).__name__}: tensors and "
                "scalars under names can be saved. Use an optimizer that keeps its state in them."
            )


def _placed(value: Tensor, parameter: Tensor, stays_on_cpu: bool) -> Tensor:
    if stays_on_cpu:
        return value.to("cpu", copy=True)
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    # With the strides of its parameter, as optimizers make it: other strides would take a slower path, for ever.
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _is_plain(value: Any) -> bool:
    return type(value) in _SCALARS or (type(value) in (list, tuple) and all(type(part) in _SCALARS for part in value))


def listed(value: Any) -> Any:
    """An option as JSON returns it."""
    return list(value) if isinstance(value, tuple) else value
