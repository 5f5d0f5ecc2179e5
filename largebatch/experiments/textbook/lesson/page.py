"""Writes the chapter: the widgets, each followed by what the experiments about it have measured, then all else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from largebatch.experiments.textbook.lesson import choice, exercises, questions, tables, tasks, widgets
from largebatch.experiments.textbook.lesson.measured import TITLES, Answers
from largebatch.records.report.evidence import Evidence
from largebatch.records.report.html_parts import paragraph
from largebatch.records.report.page import Written, write_report
from largebatch.records.report.sections import Addition, Section

TITLE = "Batch size: the chapter"
_SCRIPTS = ("closed_forms.js", "drawing.js", "descent.js", "epochs.js", "rates.js", "sizes.js", "checks.js")
# Section -> experiments whose results follow it.
_FOLLOWED = {
    "epochs": ("gd_variants", "convergence"),
    "rates": ("learning_rate", "warmup"),
    "sizes": ("linear_scaling", "gradient_variance"),
    "choice": ("lars", "noise_and_minima"),
    "checks": ("unbiasedness", "accumulation", "powers_of_two"),
}
_LEAD = (
    "Four pictures to play with, computed here from closed forms; questions, tables and exercises. No run is needed. "
    "Name folders of runs, `largebatch textbook page FOLDER`, and what they measured stands beside the theory."
)


def write_chapter(evidence: Evidence, path: Path, *, title: str = TITLE) -> Written:
    """Write the page; it needs no runs, and shows those of the evidence.

    Raises:
        OSError: if it cannot be written.
    """
    answers, task = Answers(evidence), tasks.epochs_task()
    own = [
        Section("descent", "Three ways down", paragraph(_LEAD) + widgets.descent()),
        Section("epochs", "Convergence", widgets.epochs(task["epochs"], task["divisors"])),
        Section("rates", "Learning rate", widgets.rates()),
        Section("sizes", "Batch size", widgets.sizes() + tables.trade_off()),
        Section("choice", "Which batch size?", choice.flow_chart()),
        Section("checks", "Quick checks", questions.quick_checks(answers)),
        Section("claims", "Claims, measured", tables.claims(answers)),
        Section("tables", "Tables", tables.reference_tables() + tables.all_sources()),
        Section("exercises", "Exercises", exercises.exercises(answers)),
    ]
    addition = Addition(
        arrange=lambda found: _arranged(own, found),
        scripts=[_read(name) for name in _SCRIPTS],
        style=_read("lesson.css"),
        data={"lesson": {"descent": tasks.DESCENT, "epochs": task, "rates": tasks.RATES, "sizes": tasks.SIZES}},
    )
    return write_report(evidence, path, title=title, addition=addition)


def _arranged(own: Sequence[Section], found: Sequence[Section]) -> list[Section]:
    """The chapter's sections, each with the results about it behind it; the measured explorer stands at batch size."""
    rest, sections = list(found), []
    for section in own:
        titles = [TITLES[name] for name in _FOLLOWED.get(section.key, ())]
        behind = [one for title in titles for one in rest if one.title == title]
        if section.key == "sizes":
            behind = [*(one for one in rest if one.key == "explorer"), *behind]
        rest = [one for one in rest if one not in behind]
        sections += [section, *behind]
    return [*sections, *rest]


def _read(name: str) -> str:
    return (files("largebatch.experiments.textbook.lesson") / "template" / name).read_text(encoding="utf-8")
