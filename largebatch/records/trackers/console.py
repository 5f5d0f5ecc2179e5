"""The console: progress and summary, in plain lines where there is no terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.status import Status
from rich.table import Column, Table
from rich.text import Text

from largebatch.records.rows.row_file import Row
from largebatch.records.trackers.tables import screen
from largebatch.records.trackers.tracker import Problems

_REFRESH_S = 0.1
_LINES = 100  # of training rows in a log file
_SILENCE_S = 60.0  # after which a training row is a line all the same
_VALIDATION = "eval/val_"  # every metric of it is shown
_PLACE = 2  # parts of a line that every row has: step and samples
_BAR_WIDTH = 10  # the least that is left to the bar, with its margin
_SHOWN = {
    "train/loss": "loss",
    "train/lr": "lr",
    "eval/val_loss": "val loss",
    "eval/val_accuracy": "val accuracy",
    "gap/loss": "loss gap",
    "gap/accuracy": "accuracy gap",
    "guard/loss": "BAD STEP: loss",
    "guard/loss_limit": "limit",
    "guard/grad_norm": "gradient norm",
    "guard/grad_norm_limit": "limit",
    "guard/bad": "bad steps so far",
    "communication/share_of_step": "communication's share of a step",
}
_DROPPED_FIRST = ("samples ", "lr ", "samples/s", "eta ", "loss ")


def status(text: str, *, console: Console | None = None) -> Status:
    """A context manager with a line that moves while something runs; `.update(text)` changes it, the end removes it.

    Nothing is written where there is no terminal.
    """
    return (console or screen(stderr=True)).status(Text(text))


def print_summary(
    rows: Sequence[tuple[str, object]],
    run_dir: str | Path,
    plots: Sequence[Path],
    *,
    problems: Sequence[str] = (),
    commands: Sequence[tuple[str, str]] = (),
    console: Console | None = None,
) -> None:
    """Print a table of (name, value), the losses of trackers, the paths of run and pictures, and the next commands.

    A path or a command is one line however narrow the terminal is, so that it can be copied.
    """
    console = console or screen()
    table = Table(title="summary", title_justify="left", title_style="bold", box=box.SIMPLE, pad_edge=False)
    table.add_column("", overflow="fold")
    table.add_column("", style="bold", overflow="fold")
    table.show_header = False
    for what, value in rows:
        table.add_row(Text(what), Text(str(value)))
    console.print(table)
    for problem in problems:
        console.print(Text(f"lost    {problem}", style="yellow"), soft_wrap=True)
    for name, text in [("run", run_dir), *(("plot", plot) for plot in plots), *commands]:
        console.print(Text(f"{name:7} {text}"), soft_wrap=True)


class ProgressLine:
    """A progress bar on a terminal, lines elsewhere (a file, a pipe, `TERM=dumb`).

    A tracker and a context manager: an interrupted run leaves the terminal as it was. A row without any value that is
    shown is no line. Of training rows about a hundred are lines, and more in a run that takes hours: one a minute.
    The remaining time is the remaining samples over the last throughput, smoothed over rows.

    Args:
        total_steps: optimizer steps of the whole run.
        total_samples: samples of the whole run.
        console: where to print; stdout if None. Colours obey NO_COLOR.

    Example of a line: `step 120/1347  samples 3840  loss 0.4321  lr 0.05  3200 samples/s  eta 0:00:12`
    """

    def __init__(self, *, total_steps: int, total_samples: int, console: Console | None = None) -> None:
        self._total_steps = total_steps
        self._total_samples = total_samples
        self._console = console or screen()
        self._problems = Problems("console")
        self._samples_per_s = math.nan
        self._refreshed_at = -math.inf
        self._line_at = (-math.inf, -math.inf)  # step and moment of the last line of a training row
        self._progress: Progress | None = None

    def __enter__(self) -> ProgressLine:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            with self._problems.counted("no progress bar"):
                self._progress = Progress(
                    BarColumn(bar_width=None),
                    TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
                    console=self._console,
                    expand=True,
                    auto_refresh=False,  # no thread beside the training loop
                )
                self._progress.add_task("starting", total=max(self._total_samples, 1))
                self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def problems(self) -> list[str]:
        """Lines that could not be shown, one entry per kind of trouble."""
        return self._problems.lines()

    def log(self, row: Row) -> None:
        """Show one row: a training row moves the bar, an evaluation row stays on the screen as a line."""
        with self._problems.counted("a line was not shown"):
            self._total_steps = int(row.get("batch/num_steps", self._total_steps))  # of a run that changes its batch
            parts = self._describe(row)
            if len(parts) == _PLACE:
                return
            if self._progress is None:
                if not self._is_due(row):
                    return
                self._console.print(Text("  ".join(parts)), soft_wrap=True)
            elif "train/loss" not in row:
                self._progress.console.print(Text("  ".join(parts)), soft_wrap=True)
            else:
                self._move(self._progress, row, _fit(parts, self._console.width - _BAR_WIDTH))

    def finish(self, summary: dict[str, Any], plots: Sequence[Path]) -> None:
        """Leave the last state of the bar on the screen. `print_summary` shows the rest."""
        self._stop()

    def _stop(self) -> None:
        progress, self._progress = self._progress, None
        if progress is not None:
            with self._problems.counted("the progress bar was not closed properly"):
                progress.stop()

    def _is_due(self, row: Row) -> bool:
        """Whether a row is a line of a log: of training rows the first, the last, and those far enough apart."""
        if "train/loss" not in row or "guard/loss" in row:
            return True
        step, now = int(_number(row, "step")), time.monotonic()
        last_step, last_time = self._line_at
        is_far = step - last_step >= self._total_steps / _LINES or now - last_time >= _SILENCE_S
        if is_far or step == self._total_steps:
            self._line_at = (step, now)
            return True
        return False

    def _move(self, progress: Progress, row: Row, description: str) -> None:
        progress.update(progress.task_ids[0], completed=_number(row, "samples_seen"), description=description)
        if time.monotonic() - self._refreshed_at >= _REFRESH_S:
            progress.refresh()
            self._refreshed_at = time.monotonic()

    def _describe(self, row: Row) -> list[str]:
        """The parts of a line, for a training or an evaluation row, without unmeasured values."""
        parts = [f"step {row['step']}/{self._total_steps}", f"samples {row['samples_seen']}"]
        further = {key: f"val {key.removeprefix(_VALIDATION)}" for key in row if _is_metric(key)}
        for key, name in (_SHOWN | further).items():
            if key in row:
                parts.append(f"{name} {_number(row, key):.4g}")
        rate = _number(row, "train/samples_per_s")
        if math.isfinite(rate) and rate > 0:
            smooth = self._samples_per_s
            self._samples_per_s = rate if math.isnan(smooth) else 0.7 * smooth + 0.3 * rate
            seconds = max(self._total_samples - _number(row, "samples_seen"), 0) / self._samples_per_s
            parts += [f"{rate:.0f} samples/s" if rate >= 10 else f"{rate:.3g} samples/s", f"eta {_duration(seconds)}"]
        return parts


def _fit(parts: list[str], width: int) -> str:
    """As many parts as fit, the least needed dropped first; the step always stays."""
    parts = list(parts)
    for name in _DROPPED_FIRST:
        if len("  ".join(parts)) <= width:
            break
        parts = parts[:1] + [part for part in parts[1:] if not (part.startswith(name) or part.endswith(name))]
    return "  ".join(parts)


def _is_metric(key: str) -> bool:
    return key.startswith(_VALIDATION) and key not in _SHOWN and not key.endswith(("_stderr", "_seconds", "_skipped"))


def _number(row: Row, key: str) -> float:
    return float(row.get(key, math.nan))


def _duration(seconds: float) -> str:
    """Hours, minutes, seconds; a forecast beyond 100 years only says so.

    >>> _duration(12.4), _duration(90061), _duration(1e12)
    ('0:00:12', '1 day, 1:01:01', 'never')
    """
    return str(timedelta(seconds=int(seconds))) if seconds < 100 * 365 * 86400 else "never"
