"""Which rank makes the others wait: named while the run goes on."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

from largebatch.diagnostics import IN_A_ROW, RankTimes, StragglerWatch, compare_ranks
from largebatch.distributed.gather import gather_floats, gather_texts, named_ranks
from largebatch.gradient.step import Measures, Step
from largebatch.records.trackers import Row
from largebatch.training.loop import Observer, Run
from largebatch.training.step_report import StepReport

_LEAST_S = 0.005


class StragglerObserver(Observer):
    """Names a rank on stderr that is slower than the others in three logged steps in a row.

    In a step that is logged each rank knows how long it took itself: the step without the exposed communication, in
    which it waits for the slowest rank as much as for the network. One all-reduce of 8 bytes per rank tells all ranks
    the times of all. A rank is held against the median of the others, and may take longer in proportion to its samples
    (see `compare_ranks`). Differences of less than 5 ms a step are those of any scheduler: nobody is named for them.
    After the warning rank and ratio stay in the rows; it comes again when the rank has caught up in between.

    Time of observers does not count: rank 0 writes the records and checkpoints of all. With batch norm over the global
    batch and with coupled losses ranks also wait for each other inside their forward passes, which no clock tells from
    computing: there only the other half of a step shows a straggler.

    Args:
        ratio: times the median of the others above which a rank is slow.
        every: steps between comparisons.

    Attributes:
        row: of the latest step, for the row of its metrics: `stragglers/slowest_rank` and `stragglers/ratio`, how many
            times as long as usual it took; empty after a step that was not measured, and on a single rank.
    """

    def __init__(self, *, ratio: float, every: int = 10) -> None:
        self._every = every
        self._watch = StragglerWatch(ratio=ratio, least_s=_LEAST_S)
        self._hosts: list[str] = []
        self.row: Row = {}

    def on_start(self, run: Run) -> None:
        """Learn where each rank runs, since a rank's number alone sends nobody to a machine."""
        if run.runtime.world_size > 1:
            self._hosts = gather_texts(run.runtime, socket.gethostname())

    def asks(self, step: Step) -> Measures:
        """How long a rank waits for others, in the steps of rows."""
        return Measures.COMMUNICATION if step.has_row(self._every) else Measures.NONE

    def after_step(self, run: Run, report: StepReport) -> None:
        """Compare the ranks, if this step was measured."""
        self.row = {}
        if run.runtime.world_size == 1 or not report.taken.has_row(self._every):
            return
        assert report.timeline is not None, "it is asked for"
        own_s = [row[0] for row in gather_floats(run.runtime, [report.timeline.own_s])]
        num_samples = [report.plan.rank_batch_size(rank) for rank in range(run.runtime.world_size)]
        times = compare_ranks(own_s, num_samples)
        slowest = times.slowest_rank
        self.row = {"stragglers/slowest_rank": slowest, "stragglers/ratio": times.ratios[slowest]}
        found = self._watch.add(times)
        if found and run.runtime.is_main:
            with suppress(OSError, ValueError):  # stderr itself may be full, or closed
                print(f"warning: {self._explain(found, times, report.step)}", file=sys.stderr)

    def _explain(self, found: Sequence[int], times: RankTimes, step: int) -> str:
        rank, *others = found
        also = f" So {'is' if len(others) == 1 else 'are'} {named_ranks(others)}." if others else ""
        return (
            f"rank {rank} on {self._hosts[rank]} is slow: step {step} took it {times.own_s[rank]:.3g} s without its "
            f"waits, {times.ratios[rank]:.2f} times the {times.usual_s[rank]:.3g} s usual for other ranks, and so it "
            f"was in {IN_A_ROW} measurements in a row.{also} All ranks wait for it in every step. Look there for other "
            "jobs, throttling, a slow disk or network storage."
        )
