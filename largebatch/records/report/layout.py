"""The sections of the page, and their order: the verdict, what it rests on, then everything else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path

from largebatch.records.graded_runs import calibration_of, calibration_table
from largebatch.records.regular_files import printable
from largebatch.records.report import html_parts
from largebatch.records.report.batch_table import batch_table
from largebatch.records.report.batches import batch_figures
from largebatch.records.report.evidence import Evidence, LeftOut, RunRecord
from largebatch.records.report.explorer import Explorer, explorers
from largebatch.records.report.groups import Group, grouped
from largebatch.records.report.overview import overview
from largebatch.records.report.run_figures import MOST_SHOWN, curves, maps_of_layers, run_label
from largebatch.records.report.runs_table import runs_table
from largebatch.records.report.sections import Option, Section
from largebatch.records.report.studies import studies
from largebatch.records.report.two_runs import comparison_html

# Sections of results are named after their kind.
_ORDER = (
    "overview", "advice", "study", "atlas", "runs", "training", "batches", "comparison", "attribution", "gap", "noise",
    "variance", "critical-batch", "curvature", "sharpness", "textbook", "explorer", "predictions", "two-runs", "layers",
    "time", "communication", "find-lr", "find-micro", "verify", "scaling", "damaged", "left-out",
)  # fmt: skip
_TITLES = {
    "batches": "Against batch size",
    "training": "Over training",
    "noise": "Gradient noise",
    "curvature": "Sharpness over training",
    "layers": "Layers",
    "time": "Time",
}


def page_sections(
    evidence: Evidence, of_records: Sequence[Section], page: Path
) -> tuple[list[Section], Sequence[Explorer]]:
    """The parts of the page that have something to show, in their order; and the explorers among them.

    Args:
        evidence: the runs and records.
        of_records: sections of results.
        page: where the page will be: links are relative to it.
    """
    groups = grouped(evidence.compared)
    explored = explorers(groups, evidence)
    found = [
        *([overview(evidence, groups, studies(evidence))] if evidence else []),
        Section("explorer", "Batch-size explorer", options=list(map(_explorer_option, count(), explored))),
        Section("predictions", "Predictions, graded", _graded(evidence.runs)),
        *_run_sections(evidence.compared, groups),
        *of_records,
        Section("two-runs", "Two runs compared", comparison_html(evidence.runs) if len(evidence.runs) > 1 else ""),
        Section("runs", f"Runs ({len(evidence.runs)})", runs_table(_compared_first(evidence.runs), page)),
        Section("damaged", "Damaged", _faults("run", "fault", evidence.damaged)),
        Section("left-out", "Left out", _faults("left out", "reason", evidence.left_out)),
    ]
    return sorted((one for one in found if one.before or one.options), key=place), explored


def _compared_first(runs: Sequence[RunRecord]) -> list[RunRecord]:
    return sorted(runs, key=lambda run: not run.is_compared)


def place(section: Section) -> int:
    """Several sections of one kind have numbers behind it, and keep their order."""
    return _ORDER.index(section.key.rstrip("0123456789").rstrip("-"))


def _faults(what: str, why: str, found: Sequence[LeftOut]) -> str:
    rows = [(printable(one.path), printable(one.reason)) for one in found]
    return html_parts.table((what, why), rows) if rows else ""


def _graded(runs: Sequence[RunRecord]) -> str:
    """How the predictions did that runs made of themselves: no plan without its error."""
    found = calibration_of(run.summary for run in runs)
    if not found:
        return ""
    shown = calibration_table(found)
    return html_parts.table(shown.headers, shown.rows, caption=shown.title)


def _run_sections(runs: Sequence[RunRecord], groups: Sequence[Group]) -> list[Section]:
    """Figures over runs, of one experiment at a time: losses of different tasks have nothing to do with each other."""
    options: dict[str, list[Option]] = {key: [] for key in _TITLES}
    for experiment in dict.fromkeys([*(group.experiment for group in groups), *(run.experiment for run in runs)]):
        ours = [run for run in runs if run.experiment == experiment]
        members = [group for group in groups if group.experiment == experiment]
        if against := batch_figures(members):
            options["batches"].append(Option(experiment, against, batch_table(members), experiment=experiment))
        for key, figures in curves(ours).items():
            options[key].append(Option(experiment, figures, experiment=experiment))
        options["layers"] += [Option(found.title, [found]) for found in maps_of_layers(ours)]
        for run in ours[:MOST_SHOWN] if len(ours) > 1 else ():
            for key, figures in curves([run]).items():
                options[key].append(Option(f"{run.name}: {run_label(run)}", figures))
    return [Section(key, title, options=options[key]) for key, title in _TITLES.items()]


def _explorer_option(number: int, found: Explorer) -> Option:
    rows = [(one.label, "", "", "", one.source) for one in found.quantities]
    before = html_parts.slider(number, "Batch size:", count=len(found.sizes), start=found.start)
    before += html_parts.table(("quantity", "value", "95 % or range", "kind", "source"), rows, caption=found.name)
    return Option(found.name, found.figures, before, number, experiment=found.experiment, optimizer=found.optimizer)
