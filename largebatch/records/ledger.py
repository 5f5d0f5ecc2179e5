"""The ledger, with a row per optimizer step, and the comparison of two ledgers.

A ledger is `ledger.jsonl`: one JSON object per optimizer step with `step`, `samples_seen`, `ids` (SHA-256 of the sample
ids of the whole global batch in their order, little-endian int64), `lr` and `loss` (float64 as `float.hex`, so that
equal texts are equal numbers), and in every k-th row `parameters` (SHA-256 of the weights after the step). The row of a
step that the numeric guard found bad has `guard`, its action: `log`, `skip` or `rollback`.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

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
_FURTHEST = 2**53  # a step or position beyond is no count of a run
_HASH_BYTES = 16


def is_ledger_row(row: LedgerRow) -> bool:
    """Whether `row` has the fields of a ledger, with numbers that can be read back."""
    if not all(isinstance(row.get(name), kind) for name, kind in _REQUIRED.items()):
        return False
    if not all(0 <= row[name] <= _FURTHEST for name in ("step", "samples_seen")):
        return False
    try:
        float.fromhex(row["lr"]), float.fromhex(row["loss"])
    except (ValueError, OverflowError):
        return False
    return isinstance(row.get("parameters", ""), str)


def relative_difference(one: float, other: float) -> float:
    """|one - other| over the larger magnitude; 0 if they are equal or both NaN, infinite if only one is finite.

    >>> relative_difference(4.0, 5.0), relative_difference(0.0, 0.0)
    (0.2, 0.0)
    """
    return float(_relative_differences(np.array([one]), np.array([other]))[0])


def _relative_differences(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    is_equal = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        apart = np.abs(one - other)
        return np.where(is_equal, 0.0, np.where(np.isfinite(apart), apart / np.fmax(abs(one), abs(other)), np.inf))


class Ledger:
    """The rows of a ledger as columns: 64 bytes of each, however long its hashes are.

    Of several rows of a step the last counts.

    Args:
        rows: that pass `is_ledger_row`, in the order of writing; they may come one by one.

    Attributes:
        steps: ascending, each once.
        num_rows: of `rows`.
        columns: key of `FIELDS` -> one entry per step: numbers, or of a text two halves of its hash.
    """

    def __init__(self, rows: Iterable[LedgerRow]) -> None:
        steps, samples, rates, losses = array("q"), array("q"), array("d"), array("d")
        ids, parameters = bytearray(), bytearray()
        for row in rows:
            steps.append(row["step"])
            samples.append(row["samples_seen"])
            rates.append(float.fromhex(row["lr"]))
            losses.append(float.fromhex(row["loss"]))
            ids += _hash_of(row["ids"])
            parameters += _hash_of(row["parameters"]) if "parameters" in row else bytes(_HASH_BYTES)
        self.num_rows = len(steps)
        self.steps, from_end = np.unique(np.array(steps)[::-1], return_index=True)
        last = self.num_rows - 1 - from_end
        hashes = (np.frombuffer(texts, np.int64).reshape(-1, 2)[last] for texts in (ids, parameters))
        numbers = (np.array(column)[last] for column in (samples, rates, losses))
        names = ("samples_seen", "lr", "loss", "ids", "parameters")
        self.columns: dict[str, np.ndarray] = dict(zip(names, (*numbers, *hashes), strict=True))

    def at(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        """The columns at some of its steps."""
        places = np.searchsorted(self.steps, steps)
        return {name: column[places] for name, column in self.columns.items()}


def _hash_of(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()


@dataclass(frozen=True)
class FieldComparison:
    """One field over the steps in which both ledgers have it.

    Attributes:
        field: key of the rows.
        num_compared: steps in which both have it.
        differing_steps: those in which it differs.
        largest: the largest relative difference of `lr` or `loss`, else 0.
    """

    field: str
    num_compared: int
    differing_steps: array[int]
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

    common_steps: array[int]
    only_first: array[int]
    only_second: array[int]
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


def compare_ledgers(first: Ledger, second: Ledger, *, loss_tolerance: float = 0.0) -> Comparison:
    """Compare two ledgers step by step, bitwise.

    Args:
        first: one ledger.
        second: the other one.
        loss_tolerance: relative difference up to which two losses count as equal. Above 0 the hashes of parameters are
            no longer judged: weights whose losses differ in the last digits have other bits.
    """
    common = np.intersect1d(first.steps, second.steps, assume_unique=True)
    ours, theirs = first.at(common), second.at(common)
    judged = set(FIELDS) - ({"parameters"} if loss_tolerance else set())
    return Comparison(
        common_steps=_plain(common),
        only_first=_plain(np.setdiff1d(first.steps, common, assume_unique=True)),
        only_second=_plain(np.setdiff1d(second.steps, common, assume_unique=True)),
        fields=tuple(_compare_field(field, common, ours[field], theirs[field], loss_tolerance) for field in FIELDS),
        judged=frozenset(judged),
    )


def _compare_field(
    field: str, steps: np.ndarray, ours: np.ndarray, theirs: np.ndarray, tolerance: float
) -> FieldComparison:
    largest = 0.0
    if field == "parameters":  # a hash of zeros: the row has none
        both = ours.any(axis=1) & theirs.any(axis=1)
        steps, ours, theirs = steps[both], ours[both], theirs[both]
    if field in ("lr", "loss"):
        distances = _relative_differences(ours, theirs)
        largest = float(distances.max(initial=0.0))
        # 0.0 and -0.0 are no distance apart: without a tolerance bits count.
        within = field == "loss" and tolerance
        is_unequal = distances > tolerance if within else ours.view(np.int64) != theirs.view(np.int64)
    else:
        is_unequal = ours != theirs
        is_unequal = is_unequal.any(axis=1) if is_unequal.ndim == 2 else is_unequal  # of a hash either half
    return FieldComparison(field, len(steps), _plain(steps[is_unequal]), largest)


def _plain(steps: np.ndarray) -> array[int]:
    return array("q", steps.astype(np.int64).tobytes())
