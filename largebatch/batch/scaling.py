"""Hyperparameters as functions of the batch size, each with its provenance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

SCALING_RULES = {
    "none": "base_lr",
    "linear": "base_lr * global_batch_size / base_batch_size",
    "sqrt": "base_lr * sqrt(global_batch_size / base_batch_size)",
}
# The exponent p of lr ~ B^p.
RATE_EXPONENTS = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}


@dataclass(frozen=True)
class ScaledValue:
    """A derived number with its formula and inputs, so that a log can be checked by hand.

    Attributes:
        value: the number.
        rule: name of the rule.
        formula: the rule as arithmetic over the names in `inputs`.
        inputs: value of each name in the formula.
    """

    value: float
    rule: str
    formula: str
    inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def explanation(self) -> str:
        """Formula and inputs on one line.

        >>> scale_lr(0.1, base_batch_size=256, global_batch_size=512, rule="linear").explanation
        'base_lr * global_batch_size / base_batch_size with base_lr=0.1, global_batch_size=512, base_batch_size=256'
        """
        return f"{self.formula} with {', '.join(f'{name}={value:g}' for name, value in self.inputs.items())}"


def scale_lr(base_lr: float, *, base_batch_size: int, global_batch_size: int, rule: str) -> ScaledValue:
    """Peak learning rate for `global_batch_size`, given `base_lr` tuned at `base_batch_size`.

    `linear`: k times the batch, k times the rate (Goyal et al. 2017, arXiv 1706.02677); for SGD while gradient noise
    dominates. `sqrt`: keeps the variance of the update (Krizhevsky 2014; Hoffer et al. 2017); for adaptive optimizers
    (Malladi et al. 2022). `none`: the base rate.

    Raises:
        ValueError: for an unknown rule, a rate that is not positive and finite, or a batch below 1.

    >>> scale_lr(0.1, base_batch_size=256, global_batch_size=8192, rule="linear").value
    3.2
    >>> scale_lr(0.1, base_batch_size=32, global_batch_size=512, rule="sqrt").value
    0.4
    """
    if rule not in SCALING_RULES:
        raise ValueError(f"rule={rule!r} is not a scaling rule. Choose one of {', '.join(SCALING_RULES)}.")
    if not (base_lr > 0 and math.isfinite(base_lr)):
        raise ValueError(f"base_lr={base_lr}: a learning rate is positive and finite.")
    if base_batch_size < 1 or global_batch_size < 1:
        raise ValueError(
            f"base_batch_size={base_batch_size}, global_batch_size={global_batch_size}: a batch has at least 1 sample."
        )
    factor = {
        "none": 1.0,
        "linear": global_batch_size / base_batch_size,
        "sqrt": math.sqrt(global_batch_size / base_batch_size),
    }[rule]
    inputs: dict[str, Any] = {"base_lr": base_lr}
    if rule != "none":
        inputs |= {"global_batch_size": global_batch_size, "base_batch_size": base_batch_size}
    return ScaledValue(base_lr * factor, rule, SCALING_RULES[rule], inputs)
