"""Runs that belong together: of one experiment with one optimizer, by batch size."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from largebatch.diagnostics.intervals import Interval
from largebatch.records.figures.optimizer_names import optimizer_places
from largebatch.records.report.evidence import RunRecord
from largebatch.records.report.seeds import by_seed, furthest

_EQUAL = 1.05  # budgets that differ by less count as equal


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one experiment with one optimizer.

    Attributes:
        experiment: data, model, and the study that they are of.
        optimizer: its name.
        by_batch: batch size, ascending -> runs with it; runs that change their batch belong to none.
        study: name of the study whose target ends them; empty: there is none.
    """

    experiment: str
    optimizer: str
    by_batch: dict[int, list[RunRecord]]
    study: str = ""

    @property
    def runs(self) -> list[RunRecord]:
        """All of them."""
        return [run for runs in self.by_batch.values() for run in runs]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.experiment}, {self.optimizer}"

    @property
    def samples_seen(self) -> tuple[int, int]:
        """The least and the most; of a seed that was run again only those runs count that reached furthest."""
        seen = [run.samples_seen for runs in self.by_batch.values() for one in by_seed(runs) for run in furthest(one)]
        return min(seen), max(seen)

    @property
    def is_comparable(self) -> bool:
        """Whether final values compare batch sizes: the runs saw equally many samples, and no target ended them."""
        least, most = self.samples_seen
        return not self.study and most <= _EQUAL * least

    @property
    def furthest(self) -> Group:
        """The same without runs of a study and without those that saw fewer samples: their ends do not compare."""
        free = [run for run in self.runs if not run.study]
        least = max((run.samples_seen for run in free), default=0) / _EQUAL
        kept = {size: [run for run in runs if not run.study and run.samples_seen >= least]
                for size, runs in self.by_batch.items()}  # fmt: skip
        return replace(self, by_batch={size: runs for size, runs in kept.items() if runs})

    @property
    def noise_scale(self) -> tuple[Interval, int, int] | None:
        """At the end of the runs of the smallest batch that have one, where it is measured best.

        Returns:
            The median with the envelope of the intervals, in samples; the batch size, and the number of runs.
        """
        for size, runs in self.by_batch.items():
            if found := [one for run in runs if (one := run.noise_scale) is not None]:
                value = statistics.median(one.value for one in found)
                envelope = Interval(value, min(one.low for one in found), max(one.high for one in found))
                return envelope, size, len(found)
        return None


def grouped(runs: Sequence[RunRecord]) -> list[Group]:
    """Runs by experiment and optimizer; the largest group first, a study's after the others."""
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for run in runs:
        if not run.is_ramped:
            groups.setdefault((run.experiment, run.optimizer), []).append(run)
    found = []
    for (experiment, optimizer), members in groups.items():
        sizes = sorted({run.global_batch_size for run in members})
        by_batch = {size: [run for run in members if run.global_batch_size == size] for size in sizes}
        found.append(Group(experiment, optimizer, by_batch, members[0].study))
    places = optimizer_places(group.optimizer for group in found)
    return sorted(found, key=lambda one: (bool(one.study), -len(one.runs), places[one.optimizer.lower()]))


def num_seeds(runs: Sequence[RunRecord]) -> int:
    """Different ones: a seed that was run twice counts once."""
    return len(by_seed(runs))
