"""What a ledger says of each optimizer step, and where two ledgers part.

A ledger is `ledger.jsonl`: one JSON object per optimizer step with `step`, `samples_seen`, `ids` (SHA-256 of the sample
ids of the whole global batch in their order, little-endian int64), `lr` and `loss` (float64 as `float.hex`, so that
equal texts are equal numbers), and in every k-th row `parameters` (SHA-256 of the weights after the step). The row of a
step that the numeric guard found bad has `guard`, what it did: `log`, `skip` or `rollback`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LedgerRow = Mapping[str, Any]

# In the order in which a step uses them: the first that differs is the cause, the others may only follow from it.
FIELDS = {
    "samples_seen": "position",
    "ids": "sample ids",
    "lr": "learning rate",
    "loss": "loss",
    "parameters": "parameters",
}
_REQUIRED = {"step": int, "samples_seen": int, "ids": str, "lr": str, "loss": str}


def is_ledger_row(row: LedgerRow) -> bool:
    """Whether `row` has the fields of a ledger, with numbers that can be read back."""
    if not all(isinstance(row.get(name), kind) for name, kind in _REQUIRED.items()):
        return False
    try:
        float.fromhex(row["lr"]), float.fromhex(row["loss"])
    except ValueError:
        return False
    return isinstance(row.get("parameters", ""), str)


def relative_difference(one: float, other: float) -> float:
    """|one - other| over the larger magnitude; 0 if they are equal or both NaN, infinite if only one is finite.

    >>> relative_difference(4.0, 5.0), relative_difference(0.0, 0.0)
    (0.2, 0.0)
    """
    if one == other or (math.isnan(one) and math.isnan(other)):
        return 0.0
    difference = abs(one - other)
    return difference / max(abs(one), abs(other)) if math.isfinite(difference) else math.inf


@dataclass(frozen=True)
class FieldComparison:
    """One field over the steps in which both ledgers have it.

    Attributes:
        field: key of the rows.
        num_compared: steps in which both have it.
        differing_steps: those of them in which it differs.
        largest: the largest relative difference of `lr` or `loss`, else 0.
    """

    field: str
    num_compared: int
    differing_steps: tuple[int, ...]
    largest: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """Two ledgers side by side.

    Attributes:
        common_steps: steps that both have, ascending.
        only_first, only_second: steps that one of them lacks.
        fields: one comparison per key of `FIELDS`.
        judged: the fields that decide whether the ledgers are equal.
    """

    common_steps: tuple[int, ...]
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]
    fields: tuple[FieldComparison, ...]
    judged: frozenset[str]

    @property
    def first_divergence(self) -> tuple[int, tuple[str, ...]] | None:
        """The first step in which a judged field differs, and the fields that differ there; None: they are equal."""
        judged = [one for one in self.fields if one.field in self.judged and one.differing_steps]
        if not judged:
            return None
        step = min(one.differing_steps[0] for one in judged)
        return step, tuple(one.field for one in judged if one.differing_steps[0] == step)


def compare_ledgers(
    first: Sequence[LedgerRow], second: Sequence[LedgerRow], *, loss_tolerance: float = 0.0
) -> Comparison:
    """Compare two ledgers step by step, bitwise.

    Args:
        first: rows as `is_ledger_row` wants them; of several rows of a step the last counts.
        second: as `first`.
        loss_tolerance: relative difference up to which two losses count as equal. Above 0 the hashes of parameters are
            no longer judged: weights whose losses differ in the last digits have other bits.
    """
    ours, theirs = ({row["step"]: row for row in rows} for rows in (first, second))
    common = tuple(sorted(ours.keys() & theirs.keys()))
    judged = set(FIELDS) - ({"parameters"} if loss_tolerance else set())
    return Comparison(
        common_steps=common,
        only_first=tuple(sorted(ours.keys() - theirs.keys())),
        only_second=tuple(sorted(theirs.keys() - ours.keys())),
        fields=tuple(
            _compare_field(field, [(ours[step], theirs[step]) for step in common], loss_tolerance) for field in FIELDS
        ),
        judged=frozenset(judged),
    )


def _compare_field(field: str, pairs: Sequence[tuple[LedgerRow, LedgerRow]], tolerance: float) -> FieldComparison:
    both = [(one, other) for one, other in pairs if field in one and field in other]
    unequal = [(one, other) for one, other in both if one[field] != other[field]]
    largest = 0.0
    if field in ("lr", "loss"):
        far = [(_distance(one, other, field), one, other) for one, other in unequal]
        largest = max((distance for distance, _, _ in far), default=0.0)
        if field == "loss":
            # Of two texts of the same number, such as 0.0 and -0.0, the distance is 0: without tolerance bits count.
            unequal = [(one, other) for distance, one, other in far if not tolerance or distance > tolerance]
    return FieldComparison(field, len(both), tuple(one["step"] for one, _ in unequal), largest)


def _distance(one: LedgerRow, other: LedgerRow, field: str) -> float:
    return relative_difference(float.fromhex(one[field]), float.fromhex(other[field]))
