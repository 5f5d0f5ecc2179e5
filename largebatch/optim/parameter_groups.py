"""Decides which parameters decay and which adapt: two independent choices, by name and by type of module."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from largebatch.optim.checks import check_hyperparameters

_NORM_MODULES = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # _NormBase: batch and instance norms
_BIAS_NAME = re.compile(r"(^|\.)(bias(_\w+)?|\w+_bias)$")  # bias; in_proj_bias of attention; bias_ih_l0 of an LSTM


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    exclude_from_decay: Sequence[str] = ("bias", "norm"),
    exclude_from_adaptation: Sequence[str] = ("bias", "norm"),
    lr: float | None = None,
    lr_factors: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    r"""Split the trainable parameters of `model` into groups: decays or not, times adapts or not, times factors of lr.

    An entry of an exclusion list is

    - "bias": parameters whose last name is `bias`, starts with `bias_` or ends with `_bias`;
    - "norm": parameters of torch's own batch, instance, layer, group and RMS norms (subclasses included);
    - or a regular expression, looked for anywhere in the full name of the parameter (`re.search`). Norms that a library
      defines itself need one, for example `r"norm\d?\.weight$"`.

    A parameter that several modules share appears once, under its first name; an entry that fits any of its names
    excludes it.

    Args:
        model: wrapped or not; frozen parameters are left out.
        weight_decay: of the groups that decay, >= 0; the others get 0.
        exclude_from_decay: which parameters do not decay.
        exclude_from_adaptation: which parameters get the trust ratio 1 from LARS and LAMB.
        lr: what the optimizer gets as its rate; needed with factors.
        lr_factors: factor of each trainable parameter's rate by name, see `lr_factors`; None: all 1.

    Returns:
        Groups for any optimizer of torch or of this package, in a fixed order, without empty ones: `params` and
        `param_names` in the order of the model, `weight_decay`, `adapts`, and `decays` (what a schedule of the weight
        decay may write to). Where the factor is not 1 also `lr_factor`, and `lr` times it as the group's own `lr`.

    Raises:
        ValueError: if the model has no trainable parameter, `weight_decay` is negative, a regular expression is
            invalid or fits no trainable parameter, or there are factors and no rate.

    >>> for group in parameter_groups(nn.Linear(2, 1), weight_decay=0.1):
    ...     print(group["param_names"], group["weight_decay"], group["adapts"])
    ['weight'] 0.1 True
    ['bias'] 0.0 False
    """
    check_hyperparameters({"weight_decay": weight_decay})
    params = _trainable(model)
    kept_from_decay = _excluded(params, "exclude_from_decay", exclude_from_decay)
    kept_from_adaptation = _excluded(params, "exclude_from_adaptation", exclude_from_adaptation)
    factors = lr_factors or {}
    if factors and lr is None:
        raise ValueError("lr_factors without lr: a group's rate is their product. Pass the optimizer's rate, too.")

    def kind(param: _Param) -> tuple[bool, bool, float]:
        decays, adapts = param.name not in kept_from_decay, param.name not in kept_from_adaptation
        return not decays, not adapts, factors.get(param.name, 1.0)

    members: dict[tuple[bool, bool, float], list[_Param]] = {}
    for param in params:
        members.setdefault(kind(param), []).append(param)
    return [
        {
            "params": [param.value for param in members[key]],
            "param_names": [param.name for param in members[key]],
            "weight_decay": 0.0 if stays else weight_decay,
            "adapts": not has_ratio_1,
            "decays": not stays,
            **({} if lr is None or factor == 1 else {"lr": lr * factor, "lr_factor": factor}),
        }
        for key in sorted(members)
        for stays, has_ratio_1, factor in (key,)
    ]


def named_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters of a model in its order, a shared one once, under its first name."""
    return {param.name: param.value for param in _trainable(model)}


def parameters_by_name(model: nn.Module, groups: Mapping[str, Sequence[str]]) -> dict[str, list[nn.Parameter]]:
    r"""The trainable parameters of each group, which is a list of entries as `parameter_groups` takes them.

    Parameters may be left over; none may be in two groups.

    Raises:
        ValueError: with the name of a group that has no parameter, shares one, or has a regular expression that is
            invalid or fits none.

    >>> model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    >>> {name: len(found) for name, found in parameters_by_name(model, {"first": [r"^0\."], "rest": ["1"]}).items()}
    {'first': 2, 'rest': 2}
    """
    params = _trainable(model)
    taken: dict[str, str] = {}
    found = {}
    for group, entries in groups.items():
        names = _excluded(params, group, entries)
        if not names:
            raise ValueError(f"{group}: {list(entries)} fits no trainable parameter. Remove the group or correct it.")
        twice = [name for name in names if name in taken]
        if twice:
            raise ValueError(
                f"{group}: {min(twice)} is in {taken[min(twice)]}, too ({len(twice)} are in both). A parameter is in "
                "one group at most: make the entries narrower, for example with ^ and $."
            )
        taken |= dict.fromkeys(names, group)
        found[group] = [param.value for param in params if param.name in names]
    return found


@dataclass
class _Param:
    value: nn.Parameter
    names: list[str]
    in_norm: bool

    @property
    def name(self) -> str:
        return self.names[0]

    def fits(self, entry: str) -> bool:
        if entry == "norm":
            return self.in_norm
        pattern = _BIAS_NAME if entry == "bias" else re.compile(entry)
        return any(pattern.search(name) for name in self.names)


def _trainable(model: nn.Module) -> list[_Param]:
    in_norms = {
        id(value)
        for module in model.modules()
        if isinstance(module, _NORM_MODULES)
        for value in module.parameters(recurse=False)
    }
    params: dict[int, _Param] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        if value.requires_grad:
            params.setdefault(id(value), _Param(value, [], id(value) in in_norms)).names.append(name)
    if not params:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameters ({sum(1 for _ in model.parameters())} in all): an "
            "optimizer needs at least one. Set requires_grad=True on what is to be trained."
        )
    return list(params.values())


def _excluded(params: list[_Param], argument: str, entries: Sequence[str]) -> set[str]:
    """Names of the parameters that match at least one entry."""
    if isinstance(entries, str):
        raise ValueError(f"{argument}={entries!r}: a list of entries, not one string. Write [{entries!r}].")
    excluded = set()
    for entry in entries:
        if not entry:
            raise ValueError(f"{argument}: '' is found in every name. Remove the entry; all of them are '.'.")
        fitting = _fitting(params, argument, entry)
        if not fitting and entry not in ("bias", "norm"):
            names = [name for param in params for name in param.names]
            shown = ", ".join(names[:8]) + (f", ... ({len(names)} names)" if len(names) > 8 else "")
            if nearest := get_close_matches(entry, names, n=3, cutoff=0.5):
                shown += f"; near it: {', '.join(nearest)}"
            raise ValueError(
                f"{argument}: {entry!r} fits no trainable parameter. A regular expression must be found in at least "
                f"one name, or it has no effect. Remove it or correct it; the names are {shown}."
            )
        excluded.update(fitting)
    return excluded


def _fitting(params: list[_Param], argument: str, entry: str) -> list[str]:
    try:
        return [param.name for param in params if param.fits(entry)]
    except (re.error, TypeError) as error:
        raise ValueError(
            f'{argument}: {entry!r} is not a regular expression ({error}). Entries are "bias", "norm" or a regular '
            "expression for names; escape special characters with a backslash."
        ) from error
