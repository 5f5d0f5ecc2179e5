"""Learning rates that differ between parameters: every group keeps its ratio to the rate of the run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.optim.parameter_groups import named_trainable, parameters_by_name

DEPTH_PATTERN = r"(?:^|\.)(?:blocks|block|layers|layer|h)\.(\d+)\."
"""Finds the number of a layer in the parameter names of common transformers."""


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every group the rate `lr` times its own factor, see `keep_lr_ratios`.

    Raises:
        ValueError: if groups have different rates, and no factors that say so: they would lose them.

    >>> import torch
    >>> weight, bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    >>> optimizer = torch.optim.SGD([{"params": [weight]}, {"params": [bias], "lr": 0.25}], lr=0.5)
    >>> keep_lr_ratios(optimizer)
    >>> set_lr(optimizer, 10.0)
    >>> [group["lr"] for group in optimizer.param_groups]
    [10.0, 5.0]
    """
    factors = [group.get("lr_factor", 1.0) for group in optimizer.param_groups]
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    for number, (rate, factor) in enumerate(zip(rates, factors, strict=True)):
        if not math.isclose(rate * factors[0], rates[0] * factor, rel_tol=1e-6):
            raise ValueError(
                f"Groups 0 and {number} of {type(optimizer).__name__} have the rates {rates[0]:g} and {rate:g}, and "
                "would get the same one. Call largebatch.optim.keep_lr_ratios(optimizer) once, right after making it: "
                f"then lr is the rate of a group without one of its own, {optimizer.defaults.get('lr')} so far, and "
                "the others keep their ratio to it."
            )
    write_rates(optimizer, [lr * factor for factor in factors])


def write_rates(optimizer: Optimizer, rates: Sequence[float]) -> None:
    """Give each group its rate."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):  # in place: a compiled step reads it there
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def keep_lr_ratios(optimizer: Optimizer) -> None:
    """Store the ratio of every group's rate to `optimizer.defaults["lr"]` as its `lr_factor`, unless it is 1.

    A factor from `parameter_groups` is kept to the last bit if the group's rate belongs to it. Under a scheduler of
    torch the group's rate is its `initial_lr`, the peak, whatever the scheduler has made of it by now.

    Raises:
        ValueError: if groups differ from a default rate of 0, or of none.
    """
    default = float(optimizer.defaults.get("lr", 0.0))
    for number, group in enumerate(optimizer.param_groups):
        lr = float(group.get("initial_lr", group["lr"]))
        if lr == default * group.get("lr_factor", 1.0):
            continue
        if default == 0:
            raise ValueError(
                f"Group {number} of {type(optimizer).__name__} has the rate {lr:g}, the optimizer itself has 0: there "
                "is no ratio to keep. Pass the optimizer lr > 0."
            )
        group["lr_factor"] = lr / default


def lr_factors(
    model: nn.Module,
    factors: Mapping[str, float] | None = None,
    *,
    layer_decay: float | None = None,
    layer_pattern: str = DEPTH_PATTERN,
) -> dict[str, float]:
    r"""The factor of each trainable parameter's rate, by its name; the product of two settings.

    With a layer decay d, the last of L layers has the factor d, the one before it d^2, and so on. In the order of the
    model, parameters before the first layer (embeddings, stem) have d^(L + 1), those behind the last one (last norm,
    head) 1. Sources: Clark et al. 2020, "ELECTRA", appendix A; Bao et al. 2022, "BEiT".

    Args:
        model: wrapped or not.
        factors: entry, as `parameter_groups` takes them -> factor > 0. No parameter may fit two of them.
        layer_decay: d, in (0, 1); None: no decay.
        layer_pattern: looked for in names; its groups are numbers, which sort the layers.

    Raises:
        ValueError: if an entry or the pattern fits no trainable parameter, entries share one, a factor is out of range,
            or a parameter between two layers does not fit the pattern.

    >>> model = nn.Sequential()
    >>> for name in ("stem", "blocks", "head"):
    ...     model.add_module(name, nn.Sequential(nn.Linear(1, 1, bias=False)) if name == "blocks" else nn.PReLU())
    >>> lr_factors(model, {"head": 10.0}, layer_decay=0.5)
    {'stem.weight': 0.25, 'blocks.0.weight': 0.5, 'head.weight': 10.0}
    """
    wrong = {name: factor for name, factor in (factors or {}).items() if not factor > 0}
    if wrong:
        name, factor = next(iter(wrong.items()))
        raise ValueError(
            f"{name}: the factor of a learning rate is above 0, not {factor}. What is not to be trained is "
            "frozen with requires_grad=False."
        )
    named = named_trainable(model)
    result = dict.fromkeys(named, 1.0) if layer_decay is None else _decayed(list(named), layer_decay, layer_pattern)
    names = {id(value): name for name, value in named.items()}
    for entry, found in parameters_by_name(model, {entry: [entry] for entry in factors or {}}).items():
        for value in found:
            result[names[id(value)]] *= (factors or {})[entry]
    return result


def _decayed(names: list[str], decay: float, pattern: str) -> dict[str, float]:
    if not 0 < decay < 1:
        raise ValueError(f"layer_decay={decay}: the factor from one layer to the one before it, between 0 and 1.")
    layers = [_layer(name, pattern) for name in names]
    found = sorted({layer for layer in layers if layer is not None})
    if not found:
        raise ValueError(
            f"layer_decay={decay}: {pattern!r} is found in none of {len(names)} names, e.g. {', '.join(names[:4])}. "
            "Give layer_pattern a regular expression with the number of a layer as its group."
        )
    depth_of = {layer: depth for depth, layer in enumerate(found, start=1)}
    places = [place for place, layer in enumerate(layers) if layer is not None]
    result = {}
    for place, (name, layer) in enumerate(zip(names, layers, strict=True)):
        if layer is None and places[0] < place < places[-1]:
            raise ValueError(
                f"layer_decay={decay}: {name} lies between two layers and does not fit {pattern!r}, so its depth is "
                "unknown. Give layer_pattern a regular expression that fits it, too."
            )
        outside = 0 if place < places[0] else len(found) + 1
        result[name] = decay ** (len(found) + 1 - (outside if layer is None else depth_of[layer]))
    return result


def _layer(name: str, pattern: str) -> tuple[int, ...] | None:
    try:
        match = re.search(pattern, name)
        return None if match is None else tuple(map(int, match.groups())) or None
    except (re.error, TypeError, ValueError) as error:
        raise ValueError(
            f"layer_pattern={pattern!r}: {error}. A regular expression whose groups are the numbers of a layer, for "
            r"example blocks\.(\d+)\."
        ) from error
