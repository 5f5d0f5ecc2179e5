"""Builds the report: one HTML file with plotly inside, which needs no network.

A Content-Security-Policy in the page forbids requests; figures are drawn when they come into view.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import count
from pathlib import Path
from string import Template
from typing import Any

from largebatch.records.durable_files import write_whole
from largebatch.records.figures.figure import Figure
from largebatch.records.figures.optimizer_names import optimizer_places
from largebatch.records.metric_keys import stderr_key
from largebatch.records.regular_files import printable
from largebatch.records.report import html_parts
from largebatch.records.report.batches import Group, batch_figures, grouped
from largebatch.records.report.evidence import Evidence, RunRecord
from largebatch.records.report.explorer import Explorer, explorers
from largebatch.records.report.html_parts import Cell
from largebatch.records.report.isolate_broken import draw_without_broken
from largebatch.records.report.result_sections import result_sections
from largebatch.records.report.run_figures import MOST_SHOWN, curves, maps_of_layers, run_label
from largebatch.records.report.sections import Option, Section
from largebatch.records.report.shared_legends import plotly_figures
from largebatch.records.report.two_runs import comparison, comparison_html
from largebatch.records.report.verdict import caveats, verdict
from largebatch.records.rows.augmented_gap import gap_remark

_SCRIPTS = ("figures.js", "explorer.js", "two_runs.js")
_TITLES = {
    "batches": "Against batch size",
    "training": "Over training",
    "noise": "Gradient noise",
    "curvature": "Sharpness over training",
    "layers": "Layers",
    "time": "Time",
}
_HEADERS = (
    "run", "batch", "ranks", "optimizer", "status", "steps", "samples", "validation accuracy", "loss gap", "s / step",
    "files",
)  # fmt: skip


def report_sections(
    evidence: Evidence,
    groups: Sequence[Group],
    explored: Sequence[Explorer],
    of_records: Sequence[Section],
    page: Path,
) -> list[Section]:
    """The parts of the page that have something to show.

    Args:
        evidence: the runs and records.
        groups: its runs by task and optimizer.
        explored: the explorer of each group.
        of_records: sections of results.
        page: where the page will be: links are relative to it.
    """
    sentences = "".join(map(html_parts.paragraph, verdict(evidence, groups)))
    overview = f'<div class="verdict">{sentences}</div>'
    if doubts := caveats(evidence, groups):
        overview += f"<h3>Caveats</h3>{html_parts.bullets(doubts)}"
    sections = [Section("overview", "Overview", overview)]
    sections.append(Section("explorer", "Batch-size explorer", options=list(map(_explorer_option, count(), explored))))
    sections += _run_sections(evidence.compared, groups)
    sections += of_records
    if len(evidence.runs) > 1:
        sections.append(Section("two-runs", "Two runs compared", comparison_html(evidence.runs)))
    sections.append(Section("runs", f"Runs ({len(evidence.runs)})", _runs_table(evidence.runs, page)))
    if evidence.damaged:
        rows = [(printable(one.path), printable(one.reason)) for one in evidence.damaged]
        sections.append(Section("damaged", "Damaged", html_parts.table(("run", "fault"), rows)))
    if evidence.left_out:
        rows = [(printable(one.path), printable(one.reason)) for one in evidence.left_out]
        sections.append(Section("left-out", "Left out", html_parts.table(("left out", "reason"), rows)))
    return [one for one in sections if one.before or one.options]


def _run_sections(runs: Sequence[RunRecord], groups: Sequence[Group]) -> list[Section]:
    """Figures over runs, of one task at a time: losses of different tasks have nothing to do with each other."""
    options: dict[str, list[Option]] = {key: [] for key in _TITLES}
    for task in dict.fromkeys([*(group.task for group in groups), *(run.task for run in runs)]):
        ours = [run for run in runs if run.task == task]
        found = {"batches": batch_figures([group for group in groups if group.task == task])} | curves(ours)
        for key, figures in found.items():
            if figures:
                options[key].append(Option(task, figures))
        options["layers"] += [Option(found.title, [found]) for found in maps_of_layers(ours)]
        for run in ours[:MOST_SHOWN] if len(ours) > 1 else ():
            for key, figures in curves([run]).items():
                options[key].append(Option(f"{run.name}: {run_label(run)}", figures))
    return [Section(key, title, options=options[key]) for key, title in _TITLES.items()]


@dataclass(frozen=True)
class Written:
    """The result of `write_report`.

    Attributes:
        figures: plotly's, by `SECTION/NAME`, for trackers to show.
        evidence: shown on the page; `left_out` has the rest.
    """

    figures: dict[str, dict[str, Any]]
    evidence: Evidence


def write_report(evidence: Evidence, path: Path, *, title: str) -> Written:
    """Write the page. A run or record that cannot be drawn is left out of it, and named there.

    Args:
        evidence: the runs and records.
        path: the HTML file; its folder is created if need be.
        title: its heading.

    Raises:
        OSError: if it cannot be written.
    """
    from plotly.offline import get_plotlyjs

    drawn = draw_without_broken(evidence, lambda some: _draw(some, path))
    content = _read("page.html").substitute(
        title=html_parts.escaped(printable(title)),
        made=time.strftime("%Y-%m-%d %H:%M"),
        style=_read("page.css").template,
        navigation=drawn.navigation,
        content=drawn.content,
        data=drawn.data,
        plotly=get_plotlyjs().replace("</script", "<\\/script"),
        scripts="\n".join(_read(name).template for name in _SCRIPTS),
    )
    # Half of a pair of code units, as JSON may have them, is no text of UTF-8.
    write_whole(path, content.encode("utf-8", "backslashreplace"))
    return Written(drawn.figures, drawn.evidence)


@dataclass(frozen=True)
class _Drawn:
    navigation: str
    content: str
    data: str
    figures: dict[str, dict[str, Any]]
    evidence: Evidence


def _draw(evidence: Evidence, path: Path) -> _Drawn:
    of_records, broken = result_sections(evidence, path)
    evidence = evidence.without(broken)
    groups = grouped(evidence.compared)
    explored = explorers(groups, evidence)
    sections = report_sections(evidence, groups, explored, of_records, path)
    keys = _figure_keys(sections)
    figures, legends = _plotly(sections, keys, optimizer_places(run.optimizer for run in evidence.runs))
    looked_up = {"explorers": [one.record() for one in explored], "comparison": comparison(evidence.runs)}
    return _Drawn(
        navigation="".join(html_parts.anchor(part.key, part.title) for part in sections),
        content="\n".join(_html(part, keys, legends) for part in sections),
        data=html_parts.embedded_json({"figures": figures} | looked_up),
        figures=figures,
        evidence=evidence,
    )


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
        options = [(option.label, _option(option, keys, legends)) for option in part.options]
        content += html_parts.choice(f"{part.key}-choice", "Show", options)
    return html_parts.section(part.key, part.title, content)


def _option(option: Option, keys: dict[int, str], legends: dict[int, str]) -> str:
    content = option.before + _figures(option.figures, keys, legends)
    return content if option.explorer is None else html_parts.explorer(option.explorer, content)


def _figures(figures: Sequence[Figure], keys: dict[int, str], legends: dict[int, str]) -> str:
    if not figures:
        return ""
    drawn = "".join(html_parts.figure(keys[id(shown)], shown) for shown in figures)
    return f'{legends.get(id(figures[0]), "")}<div class="figures">{drawn}</div>'


def _explorer_option(number: int, found: Explorer) -> Option:
    rows = [(one.label, "", "", "", one.source) for one in found.quantities]
    before = html_parts.slider(number, "Batch size:", count=len(found.sizes), start=found.start)
    before += html_parts.table(("quantity", "value", "95 % or range", "kind", "source"), rows, caption=found.name)
    return Option(found.name, found.figures, before, number)


def _read(name: str) -> Template:
    return Template((files("largebatch.records.report") / "template" / name).read_text(encoding="utf-8"))


def _runs_table(runs: Sequence[RunRecord], page: Path) -> str:
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
    return html_parts.table(_HEADERS, rows, caption="± is the standard error over validation samples")


def _with_error(run: RunRecord, key: str) -> str:
    value, stderr = run.last(key), stderr_key(key)
    if value is None:
        return ""
    error = run.last(stderr) if stderr else None
    return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")
