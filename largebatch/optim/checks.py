"""Errors of hyperparameters: what was given, the rule, what to write instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple


def check_hyperparameters(group: Mapping[str, Any]) -> None:
    """Check every value of a parameter group that has a rule.

    Raises:
        ValueError: for the first value that breaks its rule.
    """
    for name, rule in _RULES.items():
        if name in group and not rule.holds(group[name]):
            raise ValueError(f"{name}={group[name]!r}: {rule.text}. {rule.remedy}.")


def refuse_complex(param_groups: list[dict[str, Any]]) -> None:
    """Remove the last group and raise ValueError if one of its parameters is complex."""
    for param in param_groups[-1]["params"]:
        if param.is_complex():
            param_groups.pop()
            raise ValueError(
                f"A parameter of shape {list(param.shape)} has dtype {param.dtype}: a trust ratio is defined for real "
                "parameters here. Store the real and imaginary parts, torch.view_as_real(parameter), as the parameter."
            )


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    text: str
    remedy: str


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_nonnegative(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_fraction(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _are_fractions(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(_is_fraction(beta) for beta in value)


_RULES = {
    "lr": _Rule(
        _is_nonnegative,
        "a learning rate is a finite Python number >= 0",
        "To go uphill, negate the loss; a schedule writes group['lr'] before every step",
    ),
    "momentum": _Rule(_is_fraction, "momentum is a number in [0, 1)", "0 switches it off; 0.9 is usual"),
    "betas": _Rule(
        _are_fractions,
        "betas are two numbers in [0, 1): the decay of the first and of the second moment",
        "(0.9, 0.999) is usual",
    ),
    "eps": _Rule(_is_nonnegative, "eps is a finite number >= 0, added to a denominator", "1e-6 or 1e-8 is usual"),
    "weight_decay": _Rule(_is_nonnegative, "weight decay is a finite number >= 0", "0 switches it off"),
    "trust_coefficient": _Rule(
        _is_positive,
        "the trust coefficient is a finite number > 0: |step| / |weights| at lr=1",
        "0.001 is the paper's; for steps without trust ratio set adapts=False in the group",
    ),
    "adapts": _Rule(
        lambda value: isinstance(value, bool),
        "adapts is True or False: whether the group's tensors get a trust ratio",
        "Write a bool, not a string or a number",
    ),
}
