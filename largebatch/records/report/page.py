"""Builds the report: one HTML file with plotly inside, which needs no network.

A Content-Security-Policy in the page forbids requests; figures are drawn when they come into view.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from largebatch.records.durable_files import write_whole
from largebatch.records.figures.figure import Figure
from largebatch.records.figures.legends import batch_places
from largebatch.records.figures.optimizer_names import optimizer_places
from largebatch.records.regular_files import printable
from largebatch.records.report import html_parts
from largebatch.records.report.evidence import Evidence
from largebatch.records.report.filters import filter_bar
from largebatch.records.report.isolate_broken import draw_without_broken
from largebatch.records.report.layout import page_sections
from largebatch.records.report.result_sections import result_sections
from largebatch.records.report.sections import Addition, Option, Section
from largebatch.records.report.shared_legends import plotly_figures
from largebatch.records.report.two_runs import comparison

_SCRIPTS = ("figures.js", "printing.js", "filters.js", "walk.js", "explorer.js", "two_runs.js")


@dataclass(frozen=True)
class Written:
    """The result of `write_report`.

    Attributes:
        figures: plotly's, by `SECTION/NAME`, for trackers to show.
        evidence: shown on the page; `left_out` has the rest.
    """

    figures: dict[str, dict[str, Any]]
    evidence: Evidence


_NOTHING = Addition(arrange=lambda found: found, scripts=(), style="", data={})


def write_report(evidence: Evidence, path: Path, *, title: str, addition: Addition = _NOTHING) -> Written:
    """Write the page. A run or record that cannot be drawn is left out of it, and named there.

    Args:
        evidence: the runs and records.
        path: the HTML file; its folder is created if need be.
        title: its heading.
        addition: sections that do not come from the evidence; without evidence they are the page.

    Raises:
        OSError: if it cannot be written.
    """
    drawn = draw_without_broken(evidence, lambda some: _draw(some, path, addition))
    content = _read("page.html").substitute(
        title=html_parts.escaped(printable(title)),
        made=time.strftime("%Y-%m-%d %H:%M"),
        style=_read("page.css").template + addition.style,
        navigation=drawn.navigation,
        filters=drawn.filters,
        content=drawn.content,
        data=drawn.data,
        plotly=_plotly_script() if drawn.figures else "",
        scripts="\n".join([*(_read(name).template for name in _SCRIPTS), *addition.scripts]),
    )
    # Half of a pair of code units, as JSON may have them, is no text of UTF-8.
    write_whole(path, content.encode("utf-8", "backslashreplace"))
    return Written(drawn.figures, drawn.evidence)


@dataclass(frozen=True)
class _Drawn:
    navigation: str
    filters: str
    content: str
    data: str
    figures: dict[str, dict[str, Any]]
    evidence: Evidence


def _plotly_script() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs().replace("</script", "<\\/script"))


def _draw(evidence: Evidence, path: Path, addition: Addition) -> _Drawn:
    of_records, broken = result_sections(evidence, path)
    evidence = evidence.without(broken)
    found, explored = page_sections(evidence, of_records, path)
    sections = addition.arrange(found)
    keys = _figure_keys(sections)
    figures, legends = _plotly(sections, keys, _places(evidence))
    looked_up = {"explorers": [one.record() for one in explored], "comparison": comparison(evidence.runs)}
    return _Drawn(
        navigation="".join(html_parts.anchor(part.key, part.title) for part in sections),
        filters=filter_bar(evidence),
        content="\n".join(_html(part, keys, legends) for part in sections),
        data=html_parts.embedded_json({"figures": figures} | looked_up | dict(addition.data)),
        figures=figures,
        evidence=evidence,
    )


def _places(evidence: Evidence) -> dict[str, int]:
    """The place of the colour of each optimizer and of each batch size, wherever it is drawn."""
    return {
        **optimizer_places(run.optimizer for run in evidence.runs),
        **batch_places(run.global_batch_size for run in evidence.compared),
    }


def _figure_keys(sections: Sequence[Section]) -> dict[int, str]:
    """Key of each figure, by its id; of several with one name the second ends in -2."""
    count_of_name: Counter[str] = Counter()
    keys = {}
    for part in sections:
        for shown in (figure for option in part.options for figure in option.figures):
            name = f"{part.key}/{shown.name}"
            count_of_name[name] += 1
            keys[id(shown)] = name if count_of_name[name] == 1 else f"{name}-{count_of_name[name]}"
    return keys


def _plotly(
    sections: Sequence[Section], keys: dict[int, str], fixed: Mapping[str, int]
) -> tuple[dict[str, dict[str, Any]], dict[int, str]]:
    """Figures as plotly has them, by key; and the legends that several share, by the id of the first of them."""
    figures: dict[str, dict[str, Any]] = {}
    legends: dict[int, str] = {}
    for shown in (option.figures for part in sections for option in part.options):
        together = plotly_figures(shown, fixed)
        figures |= {keys[id(one)]: drawn for one, drawn in zip(shown, together.drawn, strict=True)}
        if together.legend:
            legends[id(shown[0])] = html_parts.legend(together.legend)
    return figures, legends


def _html(part: Section, keys: dict[int, str], legends: dict[int, str]) -> str:
    content = part.before
    if part.options:
        options = [
            (
                option.label,
                html_parts.filterable(experiment=option.experiment, optimizer=option.optimizer),
                _option(option, keys, legends),
            )
            for option in part.options
        ]
        content += html_parts.choice(f"{part.key}-choice", "Show", options)
    return html_parts.section(part.key, part.title, content)


def _option(option: Option, keys: dict[int, str], legends: dict[int, str]) -> str:
    content = option.before + _figures(option.figures, keys, legends) + option.after
    return content if option.explorer is None else html_parts.explorer(option.explorer, content)


def _figures(figures: Sequence[Figure], keys: dict[int, str], legends: dict[int, str]) -> str:
    if not figures:
        return ""
    drawn = "".join(html_parts.figure(keys[id(shown)], shown) for shown in figures)
    return f'{legends.get(id(figures[0]), "")}<div class="figures">{drawn}</div>'


def _read(name: str) -> Template:
    return Template((files("largebatch.records.report") / "template" / name).read_text(encoding="utf-8"))
