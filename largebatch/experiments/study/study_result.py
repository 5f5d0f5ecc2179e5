"""Presents a study: on the console, and as study.json, study.png and a page in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from largebatch.diagnostics.critical_batch.critical_batch import CriticalBatch
from largebatch.diagnostics.critical_batch.steps_to_target import StepsToTarget, steps_text
from largebatch.diagnostics.intervals import LEAST_SEEDS
from largebatch.experiments.batch_costs import BatchCost, cost_figures, cost_numbers, cost_sentences, cost_table
from largebatch.experiments.study.analysis import Analysis, estimate_text
from largebatch.experiments.study.figures import study_figures
from largebatch.experiments.study.points import StudyPoint
from largebatch.experiments.study.record import study_record
from largebatch.records.figures.optimizer_names import optimizer_name
from largebatch.records.result import Result, Table
from largebatch.records.run_folder import environment

_POINT_HEADERS = ("optimizer", "batch", "steps (median)", "its interval", "samples", "seeds", "best setting")
_FIT_HEADERS = ("optimizer", "S_min (steps)", "E_min (samples)", "B_crit (samples)", "verdict")


def study_result(analysis: Analysis, *, title: str, costs: Sequence[BatchCost] = ()) -> Result:
    """The study as sentences, tables, figures and numbers.

    Args:
        analysis: fits and conclusions of the study.
        title: heading of the table of points: the target, and the run it is for.
        costs: of its runs; empty: only their steps are known.
    """
    points = [point for name in analysis.fits for point in analysis.of(name)]
    fits = [_fit_row(name, fit) for name, fit in analysis.fits.items()]
    return Result(
        title="Steps to a target",
        sentences=[*analysis.conclusions, *cost_sentences(costs)],
        tables=[
            Table(title, _POINT_HEADERS, [_point_row(point) for point in points]),
            Table("S = S_min (1 + B_crit/B)", _FIT_HEADERS, fits),
            *([cost_table(costs)] if costs else []),
        ],
        figures=[*study_figures(analysis), *cost_figures(costs)],
        numbers=study_record(analysis) | ({"costs": cost_numbers(costs)} if costs else {}),
        runs=[run for point in points for run in point.runs],
        picture="study.png",
        heading=title,
    )


def present(result: Result, folder: Path, *, config: dict[str, Any], more: dict[str, Any] | None = None) -> None:
    """Print the study; write study.json, study.png and page.html into `folder`, which is made if need be.

    Args:
        result: of `study_result`.
        folder: the folder to write into.
        config: kept in the record.
        more: other keys of the record.
    """
    from largebatch.records.report.publish import show_result, write_result, write_result_page

    show_result(result)
    path = folder / "study.json"
    about = {"config": config, "environment": environment()} | (more or {})
    write_result(result, path, about=about)
    write_result_page(folder, [path], title=result.tables[0].title)


def _point_row(point: StudyPoint) -> tuple[str, ...]:
    median, hidden = point.measured.median
    reached, count = len(point.measured.reached), point.measured.num_replicates
    seeds = f"median of {count}" if point.measured.summarised else f"{reached} of {count}"
    setting = ", ".join(f"{key}={value:.4g}" for key, value in point.setting.items())
    return (
        optimizer_name(point.optimizer),
        f"{point.batch_size:,}",
        f"{'> ' * hidden}{steps_text(median)}",
        _interval(point.measured),
        f"{'> ' * hidden}{median * point.batch_size:,.0f}",
        seeds,
        setting + " (border)" * bool(point.border),
    )


def _interval(measured: StepsToTarget) -> str:
    """The interval of the median; a few seeds give less than 95 %, or none."""
    count, interval = len(measured.reached), measured.interval
    if interval is None:
        few = count < LEAST_SEEDS and not measured.summarised and not measured.censored
        return f"{count} seed{'s' * (count > 1)}: no interval" if few else ""
    level = "" if measured.level >= 0.95 else f" ({measured.level:.0%}, the range)"
    return f"{steps_text(interval[0])} to {steps_text(interval[1])}{level}"


def _fit_row(name: str, fit: CriticalBatch) -> tuple[str, ...]:
    estimates = ("" if one is None else estimate_text(one) for one in (fit.s_min, fit.e_min, fit.b_crit))
    return optimizer_name(name), *estimates, fit.verdict
