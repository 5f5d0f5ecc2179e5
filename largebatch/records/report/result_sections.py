"""Sections of results, all made alike; one that cannot be drawn is named, and the others are shown."""

from __future__ import annotations

from pathlib import Path

from largebatch.records.figures.draw_plotly import plotly_figure
from largebatch.records.report.evidence import Evidence, JsonRecord, LeftOut
from largebatch.records.report.html_parts import bullets, embedded_json, folded, link_to, links, paragraph, table
from largebatch.records.report.sections import Option, Section
from largebatch.records.result import FILES

_MOST_SENTENCES = 4  # besides the first one, before the reader unfolds the others
_SHORT = 9  # rows of a table that stands above the figures


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
    shown = len(others) if len(others) <= _MOST_SENTENCES + 2 else _MOST_SENTENCES
    prose += (paragraph(first) if first else "") + bullets(others[:shown])
    prose += folded(f"{len(others) - shown} more sentences", bullets(others[shown:]))
    tables = [(len(one.rows), table(one.headers, one.rows, caption=one.title)) for one in result.tables]
    before = prose + "".join(one for length, one in tables if length <= _SHORT)
    after = "".join(one for length, one in tables if length > _SHORT)
    runs = [link_to(page, record.path.parent / run, Path(run).name) for run in result.runs]
    after += folded(f"{len(runs)} runs", links(runs))
    after += f'<p class="soft">All numbers: {links([link_to(page, record.path, record.path.name)])}</p>'
    return Option(record.name, result.figures, before, after=after)
