"""Sections of records that bring their own figures: studies, learning-rate searches, experiments of the textbook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from largebatch.records.figures.diagram import Diagram
from largebatch.records.figures.figure import Figure, from_record
from largebatch.records.report.evidence import JsonRecord
from largebatch.records.report.html_parts import Cell, Link, bullets, link_to, links, paragraph, table
from largebatch.records.report.sections import Option


def study(record: JsonRecord, page: Path, names: Mapping[str, str]) -> Option:
    """Steps to the target for each batch size and optimizer, with the setting that was the best one.

    Args:
        record: of the study.
        page: where the page will be.
        names: of optimizers, by their lower case: a study has those of the config, runs those of classes.
    """
    values = record.values
    target = values.get("target") or {}
    said = bullets([str(line) for line in values.get("conclusions") or ()])
    if target:
        said = paragraph(f"Target: {target['metric']} {target['direction']} {target['value']}.") + said
    rows: list[list[Cell]] = [
        [
            names.get(str(point["optimizer"]).lower(), str(point["optimizer"])),
            f"{point['batch_size']:,}",
            "not reached" if point.get("median_steps") is None else f"{point['median_steps']:,.4g}",
            _range(point.get("low"), point.get("high")) + _level(point.get("level")),
            ", ".join(f"{key}={_brief(value)}" for key, value in (point.get("setting") or {}).items()),
            "; ".join(map(str, point.get("border") or ())),
            _run_links(record, point.get("runs") or (), page),
        ]
        for point in values["points"]
    ]
    headers = (
        "optimizer",
        "batch",
        "median steps",
        "its interval",
        "best setting",
        "at the border of the search",
        "runs",
    )
    figures = [_renamed(figure, names) for figure in _figures(values)]
    return Option(record.name, figures, said + table(headers, rows) + _files(record, page))


def _renamed(figure: Figure, names: Mapping[str, str]) -> Figure:
    if not isinstance(figure, Diagram):
        return figure
    lines = []
    for line in figure.lines:
        name = names.get(line.series.lower(), line.series)
        label = name + line.label.removeprefix(line.series) if line.label.startswith(line.series) else line.label
        lines.append(replace(line, label=label, group=name if line.group else ""))
    return replace(figure, lines=tuple(lines))


def find_lr(record: JsonRecord, page: Path) -> Option:
    """The range test, what it suggests and why."""
    values = record.values
    tests = values.get("map") or [values]
    rows = [
        (
            f"{one['batch_size']:,}",
            _with_ends(suggestion, "lr") if (suggestion := one.get("suggestion")) else "none",
            _with_ends(limit, "value") if (limit := one.get("stability_limit")) else "none",
            str((suggestion or one).get("reason", "")),
        )
        for one in tests
    ]
    headers = ("batch", "suggested learning rate (95 %)", "largest stable (95 %)", "because")
    return Option(record.name, _figures(values), table(headers, rows) + _files(record, page))


def textbook(record: JsonRecord, page: Path) -> Option:
    """Question, answer, tables and figures of an experiment."""
    values = record.values
    said = paragraph(f"Question: {values.get('question', '')}") + paragraph(f"Answer: {values.get('answer', '')}")
    tables = [
        table([str(one) for one in part["headers"]], [[str(cell) for cell in row] for row in part["rows"]],
              caption=str(part.get("title", "")))
        for part in values.get("tables") or ()
    ]  # fmt: skip
    runs = _run_links(record, values.get("runs") or (), page)
    ran = f'<p class="soft">Runs: {links(runs)}</p>' if runs else ""
    return Option(str(values["title"]), _figures(values), said + "".join(tables) + ran + _files(record, page))


def _figures(values: dict[str, Any]) -> list[Figure]:
    return [from_record(figure) for figure in values.get("figures") or ()]


def _files(record: JsonRecord, page: Path) -> str:
    return f'<p class="soft">All numbers: {links([link_to(page, record.path, record.path.name)])}</p>'


def _run_links(record: JsonRecord, runs: Sequence[str], page: Path) -> list[Link]:
    return [link_to(page, record.path.parent / run, Path(run).name) for run in runs]


def _with_ends(found: dict[str, Any], key: str) -> str:
    ends = _range(found.get("low"), found.get("high"))
    return f"{found[key]:.3g}" + (f" ({ends})" if ends else "")


def _range(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    start, end = ("unbounded" if one is None else f"{one:,.3g}" for one in (low, high))
    return f"{start} to {end}"


def _level(level: float | None) -> str:
    """Of an interval of less than 95 %, as a few seeds have it for their median."""
    return "" if level is None or level >= 0.95 else f" ({level:.0%})"


def _brief(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
