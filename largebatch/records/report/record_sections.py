"""One section per kind of record; a record that cannot be shown is named, and the others are shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from largebatch.records.figures.draw_plotly import plotly_figure
from largebatch.records.report import measurement_sections, story_sections
from largebatch.records.report.evidence import Evidence, LeftOut
from largebatch.records.report.html_parts import embedded_json
from largebatch.records.report.sections import Option, Section

_KINDS: dict[str, tuple[str, Callable[..., Option]]] = {
    "study": ("Steps to a target", story_sections.study),
    "find_lr": ("Learning-rate range tests", story_sections.find_lr),
    "comparison": ("Large-batch gap", measurement_sections.comparison),
    "variance": ("The variance law", measurement_sections.variance),
    "gap": ("What the gap is made of", measurement_sections.gap),
    "communication": ("Communication", measurement_sections.communication),
    "sharpness": ("Sharpness", measurement_sections.sharpness),
}


def record_sections(evidence: Evidence, page: Path) -> tuple[list[Section], list[LeftOut]]:
    """Sections of all records, and the records that are not as they should be.

    Each experiment of the textbook has a section of its own; of the other kinds one of several records is shown.

    Args:
        evidence: what was read.
        page: where the page will be: links are relative to it.
    """
    left_out: list[LeftOut] = []
    names = {run.optimizer.lower(): run.optimizer for run in evidence.runs}

    def options(kind: str, build: Callable[..., Option]) -> list[Option]:
        found = []
        for record in evidence.of(kind):
            try:
                option = build(record, page, names) if kind == "study" else build(record, page)
                for figure in option.figures:  # whether all of it can be drawn
                    embedded_json(plotly_figure(figure))
                found.append(option)
            except Exception as error:  # noqa: PERF203  a record is a file, and may say anything
                left_out.append(LeftOut(record.path, f"is no whole record: {type(error).__name__}: {error}"))
        return found

    sections = [
        Section(kind.replace("_", "-"), title, options=found)
        for kind, (title, build) in _KINDS.items()
        if (found := options(kind, build))
    ]
    for number, told in enumerate(options("textbook", story_sections.textbook)):
        sections.append(Section(f"textbook-{number}", told.label, told.before, told.figures))
    return sections, left_out
