"""What an optimizer remembers, as a function of the batch: momentum, betas, averages of weights."""

from __future__ import annotations

import math
from typing import Any

from largebatch.batch.scaling import ScaledValue

MEMORY_RULES = {
    "none": "base_{name}",
    "half_life": "base_{name} ** (global_batch_size / base_batch_size)",
    "sde": "1 - (1 - base_{name}) * global_batch_size / base_batch_size",
}
ANY_BETA = (0.0, 1.0)
_NOTHING = 1e-12  # far above the rounding of kappa (1 - beta) near 1, far below any beta that is set


def scale_memory(
    base: float,
    *,
    base_batch_size: int,
    global_batch_size: int,
    rule: str | int,
    name: str = "beta",
    bounds: tuple[float, float] = ANY_BETA,
) -> ScaledValue:
    """The share that a memory keeps per step of `global_batch_size`, given the share `base` of a base batch.

    A memory x = beta x + ... halves every log(1/2) / log(beta) steps. With kappa = global_batch_size / base_batch_size:

    - `half_life`: beta^kappa. The half-life in samples stays, exactly, and with it the share that any number of samples
      leaves. For the second moment: Marek et al. 2025 (arXiv 2507.07101).
    - `sde`: 1 - kappa (1 - beta), as Malladi et al. 2022 (arXiv 2205.10287) state it. It equals beta^kappa to first
      order in kappa (1 - beta), and exists only up to 1, where nothing is kept. `half_life` is defined for every batch.
    - a number: the half-life itself, in samples, whatever `base` was.
    - `none`: the base value, whatever the batch.

    Args:
        base: in [0, 1), per step of `base_batch_size` samples.
        base_batch_size: samples per step at which `base` was tuned.
        global_batch_size: samples per step.
        rule: a name of `MEMORY_RULES`, or a half-life in samples, 1 or more.
        name: in the formula: momentum, beta1, beta2.
        bounds: smallest and largest value of a rule's result; never of `none`.

    Raises:
        ValueError: for an unknown rule, a base outside [0, 1), a batch below 1, where `sde` has no value, or
            where the value is 1 in float64.

    >>> scale_memory(0.9, base_batch_size=32, global_batch_size=64, rule="half_life").value
    0.81
    >>> scale_memory(0.9, base_batch_size=32, global_batch_size=64, rule="sde").value
    0.8
    >>> scale_memory(0.9, base_batch_size=32, global_batch_size=64, rule=64).value
    0.5
    """
    _check(base, base_batch_size, global_batch_size, rule, name)
    low, high = bounds
    if not 0 <= low <= high <= 1:
        raise ValueError(f"bounds={list(bounds)}: the smallest and the largest {name}, 0 <= smallest <= largest <= 1.")
    kappa = global_batch_size / base_batch_size
    if rule == "none":
        return ScaledValue(base, "none", f"base_{name}", {f"base_{name}": base})
    inputs: dict[str, Any] = {f"base_{name}": base}
    sizes = {"global_batch_size": global_batch_size, "base_batch_size": base_batch_size}
    if isinstance(rule, str):
        formula, inputs = MEMORY_RULES[rule].format(name=name), inputs | sizes
        value = base**kappa if rule == "half_life" else _left(1 - (1 - base) * global_batch_size / base_batch_size)
        shown = rule
    else:
        formula, inputs = (
            "0.5 ** (global_batch_size / half_life)",
            {"half_life": rule} | {"global_batch_size": global_batch_size},
        )
        value, shown = 0.5 ** (global_batch_size / rule), "half_life"
    if rule == "sde" and value < 0:
        raise ValueError(
            f"{name}: 1 - {kappa:g} * (1 - {base:g}) = {value:g}: the rule sde has no value beyond "
            f"{1 / (1 - base):.4g} times the base batch. Use half_life, which equals it to first order."
        )
    if tuple(bounds) != ANY_BETA:
        formula, inputs = f"min(max({formula}, smallest), largest)", inputs | {"smallest": low, "largest": high}
        value = min(max(value, low), high)
    if value == 1:
        raise ValueError(
            f"{name}: {formula} is 1, and a step that keeps all takes nothing in. Take a shorter half-life, a larger "
            "batch, or bounds below 1."
        )
    return ScaledValue(value, shown, formula, inputs)


def _left(value: float) -> float:
    """The value, without the rounding of 1 - beta where nothing is left: in float64 1 - 20 (1 - 0.95) is -9e-16."""
    return 0.0 if abs(value) < _NOTHING else value


def _check(base: float, base_batch_size: int, global_batch_size: int, rule: str | int, name: str) -> None:
    if isinstance(rule, str) and rule not in MEMORY_RULES:
        raise ValueError(
            f"rule={rule!r} is no rule of {name}. Choose one of {', '.join(MEMORY_RULES)}, or a half-life."
        )
    if not isinstance(rule, str) and not (rule >= 1 and math.isfinite(rule)):
        raise ValueError(f"{name}: a half-life of {rule} samples: it is at least 1 sample.")
    if not 0 <= base < 1:
        raise ValueError(f"{name}={base}: the share that a step keeps is in [0, 1).")
    require_batches(base_batch_size, global_batch_size)


def require_batches(base_batch_size: int, global_batch_size: int) -> None:
    """Raise ValueError unless both are at least 1 sample."""
    if base_batch_size < 1 or global_batch_size < 1:
        raise ValueError(
            f"base_batch_size={base_batch_size}, global_batch_size={global_batch_size}: a batch has at least 1 sample."
        )


def ema_decay(
    global_batch_size: int, *, decay: float | None = None, decay_batch_size: int = 1, half_life: int | None = None
) -> ScaledValue:
    """The share that an average of weights keeps per step of `global_batch_size` samples.

    Args:
        global_batch_size: samples per step.
        decay: per step of `decay_batch_size` samples: decay^(global_batch_size / decay_batch_size), the EMA scaling
            rule of Busbridge et al. 2023, definition 1.2; or
        decay_batch_size: of `decay`.
        half_life: in samples: the same rule, given by the half-life.

    >>> round(ema_decay(64, decay=0.9, decay_batch_size=32).value, 12)
    0.81
    """
    if decay is None:
        assert half_life is not None
        inputs: dict[str, Any] = {"global_batch_size": global_batch_size, "half_life": half_life}
        return ScaledValue(
            0.5 ** (global_batch_size / half_life), "power", "0.5 ** (global_batch_size / half_life)", inputs
        )
    formula = "decay ** (global_batch_size / decay_batch_size)"
    inputs = {"decay": decay, "global_batch_size": global_batch_size, "decay_batch_size": decay_batch_size}
    return ScaledValue(decay ** (global_batch_size / decay_batch_size), "power", formula, inputs)
