"""Samples that could not be loaded and were skipped: which, why, and how many."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from largebatch.distributed.gather import gather_texts
from largebatch.records.trackers import Problems, Row, Tracker
from largebatch.training.loop import Observer, Run
from largebatch.training.row_log import RowLog
from largebatch.training.step_report import StepReport


class SkippedObserver(Observer):
    """Tells, in steps that are logged, of the samples that all ranks have skipped: a row each in skipped.jsonl.

    `data/skipped` is their number since the last row of metrics. Two small collectives per such step.

    Args:
        rows: for the numbers.
        tracker: for the samples, on rank 0; None on other ranks.
        every: steps between rows.
    """

    def __init__(self, rows: RowLog, tracker: Tracker | None, *, every: int) -> None:
        self._rows = rows
        self._tracker = tracker
        self._every = every
        self._since: list[tuple[int, str]] = []  # (sample id, reason) since the last row
        self._problems = Problems("data")
        self._of_validation: set[int] = set()

    @property
    def problems(self) -> list[str]:
        """What was skipped, for the summary."""
        return self._problems.lines()

    def after_step(self, run: Run, report: StepReport) -> None:
        """Gather what the ranks have skipped, if this step is logged."""
        for one in report.batch.taken:
            self._since += [(int(one.asked[place]), reason) for place, reason in one.skipped]
        if not report.taken.has_row(self._every):
            return
        own, self._since = self._since, []
        skipped = _of_ranks(run, own)
        if not skipped:
            return
        self._rows.log(run.progress, {"data/skipped": len(skipped)})
        for rank, sample, reason in skipped:
            if self._tracker is not None:
                self._tracker.log({"step": report.step, "sample": sample, "rank": rank, "reason": reason})
                self._problems.count("a sample was skipped, all are in skipped.jsonl", reason)

    def tell_of_validation(self, run: Run, skipped: list[tuple[int, str]]) -> None:
        """Tell of samples that this rank left out of the validation set, the first time that it does; collective."""
        for rank, sample, reason in _of_ranks(run, skipped):
            if self._tracker is not None and sample not in self._of_validation:
                self._of_validation.add(sample)
                place: Row = {"step": run.progress.step, "set": "validation", "sample": sample, "rank": rank}
                self._tracker.log(place | {"reason": reason})
                self._problems.count("a sample of the validation set was skipped, all are in skipped.jsonl", reason)

    def state(self) -> dict[str, Any]:
        """What has been told of the validation set, as plain values."""
        return {"of_validation": sorted(self._of_validation)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned: none is told twice."""
        self._of_validation = set(state["of_validation"])


def _of_ranks(run: Run, skipped: list[tuple[int, str]]) -> list[tuple[int, int, str]]:
    """(rank, sample id, reason) of what all ranks have skipped."""
    texts = gather_texts(run.runtime, json.dumps(skipped))
    return [(rank, *one) for rank, text in enumerate(texts) for one in json.loads(text)]
