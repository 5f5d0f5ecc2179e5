"""Checks of constructor arguments that several models share."""

from __future__ import annotations


def require_counts(**counts: int) -> None:
    """Raises ValueError unless every argument is an integer of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r}: must be an integer of at least 1.")


def require_dropout(dropout: float) -> None:
    """Raises ValueError unless `dropout` is a probability below 1."""
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout={dropout!r}: the probability of dropping a unit must be in [0, 1). Use 0 for none.")


def require_features(model: str, *, expected: int, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless inputs of `shape` [n, ...] flatten to [n, expected]."""
    features = 1
    for size in shape[1:]:
        features *= size
    if len(shape) < 2 or features != expected:
        raise ValueError(
            f"{model} got inputs of shape {list(shape)}, that is {features} features per sample, but was built for "
            f"{expected}. The first dimension counts samples; set in_features={features} if the data are right."
        )
