"""Replicates: one value per seed, however often a seed was run.

A run with the seed of another one is that run again. It shows the time, whether the machine repeats itself and, where
settings differ, their effect. It shows nothing about another seed, and must not make an interval narrower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from largebatch.diagnostics.intervals import LEAST_SEEDS
from largebatch.records.report.evidence import RunRecord


class HasSettings(Protocol):
    """A run as far as it matters here."""

    @property
    def settings(self) -> Mapping[str, str]:
        """Dotted key -> value as a text."""


Run = TypeVar("Run", bound=HasSettings)


def by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one batch size, those of one seed together; a run whose settings name no seed is one by itself."""
    found: dict[object, list[Run]] = {}
    for run in runs:
        found.setdefault(run.settings.get("seed", id(run)), []).append(run)
    return list(found.values())


def furthest(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs of one seed that saw the most samples: the others were broken off."""
    most = max(run.samples_seen for run in runs)
    return [run for run in runs if run.samples_seen == most]


def last_values(runs: Sequence[RunRecord], key: str) -> list[float]:
    """The last value of each seed, a mean over its runs where there are several; those that diverged have none."""
    found = []
    for one in by_seed([run for run in runs if run.status != "diverged" and run.last(key) is not None]):
        values = [run.last(key) or 0.0 for run in furthest(one)]
        found.append(math.fsum(values) / len(values))
    return found


def no_interval(seeds: int) -> str:
    """Why a mean over so many seeds has no interval: they are too few, or ended alike.

    >>> no_interval(1), no_interval(2), no_interval(3)
    ('1 seed: no interval', '2 seeds: no interval', 'all seeds ended alike: no interval')
    """
    few = f"{seeds} seed{'s' * (seeds > 1)}"
    return f"{few if seeds < LEAST_SEEDS else 'all seeds ended alike'}: no interval"


def merge_notes(runs: Sequence[RunRecord], key: str | None) -> list[str]:
    """A clause for every seed with several runs: which runs are one value, and whether they repeat each other."""
    notes = []
    for one in by_seed(runs):
        if len(one) == 1:
            continue
        clause = f"{len(one)} runs of seed {one[0].settings.get('seed')} merged"
        kept = furthest(one)
        if len(kept) < len(one):
            clause += f" ({len(one) - len(kept)} of them saw fewer samples and are left out)"
        values = {run.last(key) for run in kept if key and run.last(key) is not None}
        if len(values) > 1:
            known = [value for value in values if value is not None]
            clause += f", which ended from {min(known):.4g} to {max(known):.4g}: their mean counts"
        notes.append(clause)
    return notes
