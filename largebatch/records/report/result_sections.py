"""Sections of results, all made alike; one that cannot be drawn is named, and the others are shown."""

from __future__ import annotations

from pathlib import Path

from largebatch.records.figures.draw_plotly import plotly_figure
from largebatch.records.report.evidence import Evidence, JsonRecord, LeftOut
from largebatch.records.report.html_parts import bullets, embedded_json, link_to, links, paragraph, table
from largebatch.records.report.sections import Option, Section
from largebatch.records.result import FILES


def result_sections(evidence: Evidence, page: Path) -> tuple[list[Section], list[LeftOut]]:
    """A section per title, in which one of several results is chosen; and the records that cannot be drawn.

    Args:
        evidence: the runs and records.
        page: where the page will be: links are relative to it.
    """
    sections: list[Section] = []
    left_out: list[LeftOut] = []
    for kind in dict.fromkeys(kind for kind, _ in FILES.values()):
        options: dict[str, list[Option]] = {}
        for record in evidence.of(kind):
            option = _option(record, page)
            try:
                for figure in option.figures:  # whether all of it can be drawn
                    embedded_json(plotly_figure(figure))
            except Exception as error:  # a record is a file, and may say anything
                left_out.append(LeftOut(record.path, f"is no whole record: {type(error).__name__}: {error}"))
            else:
                options.setdefault(record.result.title, []).append(option)
        key = kind.replace("_", "-")
        sections += [
            Section(f"{key}-{number}" if number else key, title, options=found)
            for number, (title, found) in enumerate(options.items())
        ]
    return sections, left_out


def _option(record: JsonRecord, page: Path) -> Option:
    result = record.result
    prose = paragraph(f"Question: {result.question}") if result.question else ""
    first, *others = result.sentences or [""]
    prose += (paragraph(first) if first else "") + bullets(others)
    tables = "".join(table(one.headers, one.rows, caption=one.title) for one in result.tables)
    runs = [link_to(page, record.path.parent / run, Path(run).name) for run in result.runs]
    ends = [("Runs", runs), ("All numbers", [link_to(page, record.path, record.path.name)])]
    linked = "".join(f'<p class="soft">{name}: {links(targets)}</p>' for name, targets in ends if targets)
    return Option(record.name, result.figures, prose + tables + linked)
