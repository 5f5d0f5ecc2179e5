"""Samples that could not be loaded and were skipped: which, why, and how many."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from largebatch.batch.ramp import BatchRamp
from largebatch.distributed.gather import gather_texts
from largebatch.gradient.batch_stream import Loader
from largebatch.records.trackers import Problems, Row, Tracker
from largebatch.training.loop import Run, StepReport
from largebatch.training.observers.metrics import Journal


class SkipNotingLoader:
    """Passes micro-batches on and remembers which samples were skipped until `take_skipped` is called."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._skipped: list[tuple[int, str]] = []

    def micro_batches(self, samples_seen: int, num_steps: int) -> Iterator[Any]:
        """As the loader does."""
        for micro_batch in self._loader.micro_batches(samples_seen, num_steps):
            self._skipped += [(int(micro_batch.asked[place]), reason) for place, reason in micro_batch.skipped]
            yield micro_batch

    def replan(self, plan: BatchRamp) -> None:
        """As the loader does."""
        self._loader.replan(plan)

    def take_skipped(self) -> list[tuple[int, str]]:
        """(sample id, reason) of what was skipped since the last call."""
        skipped, self._skipped = self._skipped, []
        return skipped


class SkippedObserver:
    """Tells, in steps that are logged, of the samples that all ranks have skipped: a row each in skipped.jsonl.

    `data/skipped` is their number since the last row of metrics. Two small collectives per such step.

    Args:
        journal: for the numbers.
        tracker: for the samples, on rank 0; None on other ranks.
        loader: the run's loader, watched.
    """

    def __init__(self, journal: Journal, tracker: Tracker | None, loader: SkipNotingLoader) -> None:
        self._journal = journal
        self._tracker = tracker
        self._loader = loader
        self._problems = Problems("data")
        self._of_validation: set[int] = set()

    @property
    def problems(self) -> list[str]:
        """What was skipped, for the summary."""
        return self._problems.lines()

    def on_start(self, run: Run) -> None:
        """Nothing has been loaded yet."""

    def after_step(self, run: Run, report: StepReport) -> None:
        """Gather what the ranks have skipped, if this step is logged."""
        if not run.is_logged(run.counted_step):
            return
        skipped = _of_ranks(run, self._loader.take_skipped())
        if not skipped:
            return
        self._journal.log(run.progress, {"data/skipped": len(skipped)})
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

    def on_end(self, run: Run, status: str) -> None:
        """The last step was logged."""

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
