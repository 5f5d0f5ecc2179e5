"""What communication costs a run while it trains."""

from __future__ import annotations

import statistics

from largebatch.diagnostics import StepCommunication, TransferFit, probe_sizes
from largebatch.diagnostics.communication.all_reduces import time_all_reduces
from largebatch.diagnostics.communication.rank_clocks import communication_of_ranks
from largebatch.gradient.step import Measures, Step
from largebatch.records.trackers import Row
from largebatch.training.loop import Observer, Run
from largebatch.training.row_log import RowLog
from largebatch.training.step_report import StepReport

_NUM_SIZES = 8
_PROBED_EVERY = 10  # measurements; a network changes less than a step does


class CommunicationObserver(Observer):
    """Measures every `every` steps and logs a row each time, of the gradient's reduction over all ranks.

    `communication/total_s` is the time in which parts of the gradient, ready on every rank, were being reduced;
    `communication/exposed_s` the part of it that no computation hides, `communication/hidden_share` the rest as a share
    of the total, and `communication/share_of_step` the exposed part over the time of the step.
    `communication/straggler_wait_s` is how long the fastest rank waited for `communication/slowest_rank`: time that a
    faster network would not save.

    After the first measurement, and every tenth from there, the ranks sum a few buffers of their own, up to the largest
    part of the gradient: the line through their times is `communication/latency_s` and
    `communication/bandwidth_bytes_per_s` (left out where they do not lie on one), and `communication/predicted_s` what
    it says of this gradient's parts one after another. Of a total far above it, something else than the network is the
    cause: computation on the same cores, or other jobs.

    A measurement costs two time stamps per part of the gradient and an all-reduce of 16 bytes per rank and part; the
    tenth ones, after the step and not counted as its time, about ten all-reduces of the largest part, or of 4 MiB.

    Args:
        rows: for the rows.
        every: steps between measurements.
        repetitions: of each of the all-reduces after the step.
    """

    def __init__(self, rows: RowLog, *, every: int, repetitions: int = 7) -> None:
        self._rows = rows
        self._every = every
        self._repetitions = repetitions
        self._found: list[StepCommunication] = []
        self._fit: TransferFit | None = None

    def asks(self, step: Step) -> Measures:
        """Time stamps, in steps that are measured."""
        return Measures.COMMUNICATION if step.is_due(self._every) else Measures.NONE

    def after_step(self, run: Run, report: StepReport) -> None:
        """Take the measurement of this step, if it made one."""
        if report.timeline is None or not report.timeline.num_bytes or not report.taken.is_due(self._every):
            return
        found = communication_of_ranks(run.runtime, report.timeline)
        self._found.append(found)
        row: Row = {
            "communication/total_s": found.total_s,
            "communication/exposed_s": found.exposed_s,
            "communication/hidden_share": found.hidden_share,
            "communication/share_of_step": found.share_of_step,
            "communication/straggler_wait_s": found.straggler_wait_s,
            "communication/slowest_rank": found.slowest_rank,
            "communication/gradient_bytes": sum(report.timeline.num_bytes),
        }
        # By number: whether the fit came out well must not decide it, since ranks might differ in its last digit.
        if len(self._found) % _PROBED_EVERY == 1:
            row |= self._probe(run, max(report.timeline.num_bytes))
        if self._fit is not None:
            row["communication/predicted_s"] = self._fit.seconds(report.timeline.num_bytes)
        self._rows.log(run.progress, row)

    def _probe(self, run: Run, largest: int) -> Row:
        sizes = probe_sizes(largest, _NUM_SIZES)
        fit = time_all_reduces(run.runtime, sizes, repetitions=self._repetitions).fit
        if fit.bandwidth is None:
            return {}
        self._fit = fit
        return {"communication/latency_s": fit.latency_s, "communication/bandwidth_bytes_per_s": fit.bandwidth}

    def summary(self) -> str | None:
        """Medians over the measurements, for people; None without any."""
        if not self._found:
            return None
        rows = [(one.total_s, one.exposed_s, one.straggler_wait_s, one.share_of_step) for one in self._found]
        total, exposed, skew, share = (statistics.median(column) for column in zip(*rows, strict=True))
        return (
            f"{1000 * exposed:.3g} of {1000 * total:.3g} ms exposed per step, {share:.1%} of its time; "
            f"{1000 * skew:.3g} ms waiting for the slowest rank (medians of {len(self._found)})"
        )
