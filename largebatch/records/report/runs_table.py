"""The table of all runs, with links to their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from largebatch.records.metric_keys import stderr_key
from largebatch.records.report import html_parts
from largebatch.records.report.evidence import RunRecord
from largebatch.records.report.html_parts import Cell
from largebatch.records.rows.augmented_gap import gap_remark

_SMALL = 1e-3  # smaller values have significant digits instead of four decimals
_HEADERS = (
    "run", "batch", "ranks", "optimizer", "status", "steps", "samples", "validation accuracy", "loss gap", "s / step",
    "files",
)  # fmt: skip


def runs_table(runs: Sequence[RunRecord], page: Path) -> str:
    """A row for each run; links are relative to the page. Nothing without runs."""
    if not runs:
        return ""
    rows: list[list[Cell]] = [
        [
            run.name,
            f"{run.global_batch_size:,}{' and more' if run.is_ramped else ''}",
            str(run.world_size),
            run.optimizer,
            run.status,
            f"{run.steps:,}",
            f"{run.samples_seen:,}",
            _with_error(run, "eval/val_accuracy"),
            _with_error(run, "gap/loss") + gap_remark(run.is_gap_augmented),
            "" if run.step_s is None else f"{run.step_s:.3g}",
            html_parts.run_links(page, run),
        ]
        for run in runs
    ]
    attributes = [
        html_parts.filterable(experiment=run.experiment, optimizer=run.optimizer, batch=run.global_batch_size)
        for run in runs
    ]
    caption = "± is the standard error over validation samples"
    return html_parts.table(_HEADERS, rows, caption=caption, attributes=attributes)


def _with_error(run: RunRecord, key: str) -> str:
    value, stderr = run.last(key), stderr_key(key)
    if value is None:
        return ""
    error = run.last(stderr) if stderr else None
    digits = ".4f" if abs(value) >= _SMALL or value == 0 else ".2g"
    return f"{value:{digits}}" + ("" if error is None else f" ± {error:{digits}}")
