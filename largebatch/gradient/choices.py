"""Which ways to compute a gradient exclude each other."""

from __future__ import annotations


def require_compatible(
    *,
    ordered: bool,
    exact_batch_norm: bool,
    compresses: bool,
    couples: bool,
    survives_shortage: bool,
    recomputes: bool,
) -> None:
    """Raise ValueError if they do; see `GlobalGradient`."""
    if ordered and exact_batch_norm:
        raise ValueError(
            "An ordered reduction adds the gradients of micro-batches one by one; with exact batch norm a "
            "micro-batch has no gradient of its own. Choose one of them."
        )
    if survives_shortage and (ordered or exact_batch_norm or couples or compresses):
        raise ValueError(
            "A step that is taken again in smaller micro-batches sums its gradients by itself, once all are there: "
            "not in order, not compressed, and not where micro-batches depend on each other."
        )
    if recomputes and (ordered or exact_batch_norm or couples or survives_shortage):
        raise ValueError(
            "To compute its part of a gradient twice a rank must have one: not with an ordered reduction, exact "
            "batch norm or a loss that couples samples, which mix the ranks before, and not in steps that may be "
            "taken again in smaller micro-batches. Leave the recomputation out."
        )
