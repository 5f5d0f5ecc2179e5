"""Checks of hyperparameters. An error gives the value, the rule, and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple


def check_hyperparameters(group: Mapping[str, Any]) -> None:
    """Check every value of a parameter group that has a rule.

    Raises:
        ValueError: for the first value that breaks its rule, or has no effect beside the others.
    """
    for name, rule in _RULES.items():
        if name in group and not rule.holds(group[name]):
            raise ValueError(f"{name}={group[name]!r}: {rule.text}. {rule.remedy}.")
    if group.get("nesterov") and group["momentum"] == 0:
        raise ValueError("nesterov=True has no effect at momentum=0: there is no velocity to look along. Leave it out.")
    if not group.get("grad_averaging", True) and group["betas"][0] == 0:
        raise ValueError("grad_averaging=False has no effect at betas[0]=0: nothing is averaged. Leave it out.")


def check_paths(foreach: bool | None, fused: bool | None, *, compile: bool | None = False) -> None:
    """Raise ValueError if more than one path is asked for."""
    asked = [f"{name}=True" for name, value in (("foreach", foreach), ("fused", fused), ("compile", compile)) if value]
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)}: these are different paths of one step. Set one of them, or none.")


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


def _is_positive_or_none(value: Any) -> bool:
    return value is None or _is_positive(value)


def _are_bounds_or_none(value: Any) -> bool:
    if value is None:
        return True
    is_pair = isinstance(value, Sequence) and len(value) == 2 and all(_is_number(bound) for bound in value)
    return is_pair and 0 <= value[0] <= value[1] and value[1] > 0


def _switch(name: str, meaning: str) -> _Rule:
    return _Rule(
        lambda value: isinstance(value, bool),
        f"{name} is True or False: {meaning}",
        "Write a bool, not a string or a number",
    )


def _choice(name: str, meaning: str, *choices: str) -> _Rule:
    written = " or ".join(f'"{choice}"' for choice in choices)
    return _Rule(lambda value: value in choices, f"{name} is {written}: {meaning}", f'The paper\'s is "{choices[0]}"')


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
    "adapts": _switch("adapts", "whether the group's tensors get a trust ratio"),
    "adapt_undecayed": _switch("adapt_undecayed", "whether tensors without decay get a trust ratio"),
    "denominator": _choice("denominator", "|g| + weight_decay |w|, or |g + weight_decay w|", "split", "joint"),
    "lr_placement": _choice("lr_placement", "of the velocity", "inside", "outside"),
    "nesterov": _switch("nesterov", "whether the step looks ahead along the velocity"),
    "clip": _switch("clip", "whether lr bounds the rates of the tensors instead of scaling them"),
    "bias_correction": _switch("bias_correction", "whether the moments are divided by 1 - beta^t"),
    "decay_placement": _choice("decay_placement", "of the trust ratio", "inside", "outside"),
    "norm_bounds": _Rule(
        _are_bounds_or_none,
        "norm_bounds are two finite numbers, 0 <= lower <= upper and upper > 0: the range of phi(|w|)",
        "None switches them off; ports of LAMB use (0, 10)",
    ),
    "trust_clip": _switch("trust_clip", "whether a trust ratio is at most 1"),
    "max_grad_norm": _Rule(
        _is_positive_or_none,
        "max_grad_norm is a finite number > 0: the largest norm of the gradients of all groups together",
        "None switches it off; 1.0 is usual",
    ),
    "compile": _Rule(
        lambda value: value is None or isinstance(value, bool),
        "compile is True, False or None: whether a step runs in kernels that are compiled on this machine",
        "None takes them where they work",
    ),
    "grad_averaging": _switch("grad_averaging", "whether a gradient enters the first moment times 1 - beta1"),
}
