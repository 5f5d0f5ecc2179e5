"""Pieces of HTML. Every text that a run brings along goes through `html.escape` here."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from largebatch.records.figures.diagram import Surface
from largebatch.records.figures.figure import Figure
from largebatch.records.report.evidence import RunRecord
from largebatch.records.report.shared_legends import Entry

_LONG = 20  # rows of a table that scrolls by itself


@dataclass(frozen=True)
class Link:
    """A cell that leads somewhere, relative to the page."""

    text: str
    target: str


Cell = str | Link | Sequence[Link]


def link_to(page: Path, target: Path, text: str) -> Link:
    """From the page to a file or folder; folders and pages may move together."""
    way = os.path.relpath(os.path.realpath(target), os.path.dirname(os.path.realpath(page)))
    return Link(text, quote(os.fsencode(way)))  # names are bytes, and need not be UTF-8


def run_links(page: Path, run: RunRecord) -> list[Link]:
    """Links to the files of a run."""
    names = ("config.yaml", "plan.json", "metrics.jsonl", "summary.json")
    files = [link_to(page, run.folder / name, Path(name).stem) for name in names if (run.folder / name).is_file()]
    return [link_to(page, run.folder, "folder"), *files]


def escaped(text: str) -> str:
    """A text with the signs of HTML escaped."""
    return html.escape(text)


def anchor(key: str, text: str) -> str:
    """A link to a section of the page."""
    return f'<a href="#{html.escape(key, quote=True)}">{html.escape(text)}</a>'


def prose(text: str) -> str:
    """Plain text, with backticks as code.

    >>> prose("`largebatch study` does, below 5 < 6.")
    '<code>largebatch study</code> does, below 5 &lt; 6.'
    """
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def paragraph(text: str) -> str:
    """A paragraph of `prose`."""
    return f"<p>{prose(text)}</p>"


def bullets(lines: Sequence[str]) -> str:
    """A list; nothing without lines."""
    return f"<ul>{''.join(f'<li>{prose(line)}</li>' for line in lines)}</ul>" if lines else ""


def folded(summary: str, content: str) -> str:
    """Content that a reader unfolds; printing does, too."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>" if content else ""


def grouped_list(title: str, lines: Sequence[str]) -> str:
    """A heading with the number of lines and the lines below it; nothing without lines."""
    heading = f"<h3>{html.escape(title)} ({len(lines)})</h3>"
    return f'<div class="lines">{heading}{bullets(lines)}</div>' if lines else ""


def filterable(*, experiment: str = "", optimizer: str = "", batch: int | None = None) -> str:
    """Attributes of an element by which the filters of the page hide it."""
    facets = {"experiment": experiment, "optimizer": optimizer, "batch": "" if batch is None else str(batch)}
    return "".join(f' data-{key}="{html.escape(value, quote=True)}"' for key, value in facets.items() if value)


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    caption: str = "",
    attributes: Sequence[str] = (),
) -> str:
    """A table that scrolls by itself where the page is narrow; it can be reached by the keyboard.

    Args:
        headers: of the columns.
        rows: the first cell of each stays where it is when the others scroll.
        caption: names the rows.
        attributes: of each row, from `filterable`; empty: none have any.
    """
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in headers)
    of_rows = attributes or [""] * len(rows)
    body = "".join(
        f"<tr{own}>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>\n"
        for own, row in zip(of_rows, rows, strict=True)
    )
    label = html.escape(caption or "table", quote=True)
    title = f"<caption>{prose(caption)}</caption>" if caption else ""
    style = "table long" if len(rows) > _LONG else "table"
    return (
        f'<div class="{style}" tabindex="0" role="region" aria-label="{label}"><table>{title}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def figure(key: str, shown: Figure) -> str:
    """The place where the page draws a figure once it comes into view."""
    title, caption = html.escape(shown.title), prose(shown.caption)
    kind = "plot square" if isinstance(shown, Surface) and shown.square else "plot"
    return (
        f'<figure data-figure="{html.escape(key, quote=True)}"><h3>{title}</h3>'
        f'<div class="{kind}" role="group" aria-label="{html.escape(shown.title, quote=True)}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


_DASH_ARRAYS = {"dot": "2 3", "dash": "7 4", "longdash": "11 4", "dashdot": "7 3 2 3", "longdashdot": "11 3 2 3"}


def legend(entries: Sequence[Entry]) -> str:
    """One legend for the figures that follow it: each entry is a button that hides its series.

    An entry of an optimizer or a batch size is a filter of the whole page.
    """
    if not entries:
        return ""
    parts = [
        f'<button type="button" aria-pressed="true" data-{one.facet or "series"}='
        f'"{html.escape(one.value or one.label, quote=True)}">{_mark(one)} {one.label}</button>'
        for one in entries
    ]
    return f'<div class="legend" role="group" aria-label="Legend: what is shown">{"".join(parts)}</div>'


def _mark(one: Entry) -> str:
    dashes = f' stroke-dasharray="{_DASH_ARRAYS[one.dash]}"' if one.dash in _DASH_ARRAYS else ""
    drawn = f'<line x1="1" y1="6" x2="29" y2="6" stroke="{one.colour}" stroke-width="2.5"{dashes}/>'
    if one.symbol == "triangle-up-open":
        drawn = f'<path d="M15 1 L20 11 L10 11 Z" fill="none" stroke="{one.colour}" stroke-width="2"/>'
    elif one.symbol:
        fill = f'fill="none" stroke="{one.colour}" stroke-width="2"' if "open" in one.symbol else f'fill="{one.colour}"'
        drawn = f'<circle cx="15" cy="6" r="{5 if "open" in one.symbol else 4}" {fill}/>'
    return f'<svg width="30" height="12" aria-hidden="true">{drawn}</svg>'


def choice(key: str, label: str, options: Sequence[tuple[str, str, str]]) -> str:
    """A select over (label, attributes from `filterable`, HTML): the chosen one is shown."""
    if len(options) == 1:
        return options[0][2]
    identity = html.escape(key, quote=True)
    items = "".join(
        f'<option value="{i}"{own}>{html.escape(text)}</option>' for i, (text, own, _) in enumerate(options)
    )
    parts = "".join(f"<div{' hidden' if i else ''}>{content}</div>" for i, (_, _, content) in enumerate(options))
    return (
        f'<p class="choice"><label for="{identity}">{html.escape(label)}</label> '
        f'<select id="{identity}" data-choice>{items}</select></p><div class="choices">{parts}</div>'
    )


def select(identity: str, label: str, options: Sequence[str], *, chosen: int = 0) -> str:
    """A list to choose from; an option's value is its number."""
    items = "".join(
        f'<option value="{i}"{" selected" if i == chosen else ""}>{html.escape(text)}</option>'
        for i, text in enumerate(options)
    )
    return (
        f'<p><label for="{identity}">{html.escape(label)}</label> '
        f'<select id="{identity}" autocomplete="off">{items}</select></p>'
    )


def slider(number: int, label: str, *, count: int, start: int) -> str:
    """A range over `count` places with its text; it changes the table and figures of the block with this number."""
    identity = f"explorer-{number}"
    return (
        f'<p><label for="{identity}">{html.escape(label)}</label> <output for="{identity}"></output></p>'
        f'<input type="range" id="{identity}" min="0" max="{count - 1}" step="1" value="{start}" autocomplete="off">'
    )


def explorer(number: int, content: str) -> str:
    """The block of a slider, whose script finds its table and figures inside."""
    return f'<div class="explorer" data-explorer="{number}">{content}</div>'


def section(key: str, title: str, content: str) -> str:
    """A part of the page that the navigation leads to."""
    return f'<section id="{html.escape(key, quote=True)}"><h2>{html.escape(title)}</h2>\n{content}</section>'


def links(targets: Sequence[Link]) -> str:
    """Links, one after the other."""
    return " ".join(f'<a href="{html.escape(one.target, quote=True)}">{html.escape(one.text)}</a>' for one in targets)


def embedded_json(values: dict[str, Any]) -> str:
    r"""JSON that cannot end the script element that it stands in.

    >>> embedded_json({"name": "</script>"})
    '{"name":"\\u003c/script>"}'
    """
    return json.dumps(values, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return html.escape(cell)
    return links([cell] if isinstance(cell, Link) else cell)
