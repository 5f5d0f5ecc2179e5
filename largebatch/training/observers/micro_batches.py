"""What became of micro-batches that did not fit into memory."""

from __future__ import annotations

from largebatch.distributed.gather import named_ranks
from largebatch.training.loop import Observer, Run
from largebatch.training.row_log import RowLog
from largebatch.training.step_report import StepReport


class MicroBatchObserver(Observer):
    """Tells of smaller micro-batches, in a row with `batch/max_micro` and on the screen, as soon as they are in use."""

    def __init__(self, rows: RowLog) -> None:
        self._rows = rows

    def after_step(self, run: Run, report: StepReport) -> None:
        """Tell of what this step has found."""
        new = report.batch.shortages
        if not new:
            return
        size = new[-1].next_size
        assert size is not None
        self._rows.log(run.progress, {"batch/max_micro": size})
        if run.runtime.is_main:
            ranks = named_ranks(sorted({rank for one in new for rank in one.ranks}))
            print(
                f"out of memory in step {report.step} ({ranks}): from there on micro-batches hold at most {size} "
                f"samples in place of {new[0].size}, on every rank; the global batch stays. To begin so: "
                f"batch.max_micro={size}",
                flush=True,
            )
