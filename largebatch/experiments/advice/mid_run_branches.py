"""`measure critical-batch` within the budget of advice: from mid run of the planned batch, with few batch sizes."""

from __future__ import annotations

from pathlib import Path

from largebatch.experiments.advice.short_runs import ShortRun, Spans, middle_checkpoint, seconds_of

NAME = "critical_batch"
FACTORS, STEPS, WINDOWS = (0.5, 1, 2, 4), 8, 12  # fewer batch sizes than by default, on as many samples
NUM_STEPS = round(sum(WINDOWS * STEPS * max(FACTORS) / factor for factor in FACTORS))
_EVALUATIONS = 1.5  # times the time of the steps, with what the branches are evaluated on


def settings_of(run: ShortRun, spans: Spans, checkpoint: Path) -> list[str]:
    """The overrides of `measure critical-batch` beside those of the plan: the run's own settings, and few branches."""
    key = f"measure.{NAME}"
    return [
        f"batch.total={run.batch}",
        f"seed={run.seed}",
        f"length={spans.total}samples",
        f"schedule.warmup={spans.warmup}samples",
        f"measure.checkpoint={checkpoint}",
        f"{key}.factors={list(FACTORS)}".replace(" ", ""),
        f"{key}.steps={STEPS}",
        f"{key}.windows={WINDOWS}",
    ]


def why_not(run: ShortRun, folder: Path, spans: Spans, *, seconds_left: float) -> str:
    """Why it is left out; empty if there are a checkpoint and time for it."""
    if middle_checkpoint(run, folder, spans) is None:
        return f"{run.name} has no checkpoint of mid run"
    steps = {round(factor * run.batch): round(WINDOWS * STEPS * max(FACTORS) / factor) for factor in FACTORS}
    seconds = seconds_of(steps, folder)
    expected = None if seconds is None else _EVALUATIONS * seconds
    if seconds_left <= (expected or 0.0):
        return "no time left" + ("" if expected is None else f" ({expected:.0f} s expected)")
    return ""
