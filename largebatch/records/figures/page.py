"""A page of tables and pictures: one HTML file that needs nothing else, in light and dark, wide and narrow."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from largebatch.records.durable_files import write_whole

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #5c6670; --line: #d7dce1; --back: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ec; --soft: #a0a8b0; --line: #3a4149; --back: #14171a; --card: #1d2226; }
}
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem; }
p { color: var(--soft); margin: .2rem 0; }
nav a { margin-right: 1rem; color: inherit; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td { font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 6px; margin: 1rem 0 0; }
"""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        name: of the part, for its heading and for links.
        caption: what the table is about.
        headers: of its columns.
        rows: its cells.
        plots: PNG files, shown below the table.
    """

    name: str
    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    plots: Sequence[Path] = ()


def write_page(path: Path, *, title: str, lines: Sequence[str], sections: Sequence[Section]) -> Path:
    """Write the page; returns its path.

    Args:
        path: the HTML file.
        title: its heading.
        lines: plain text below the heading.
        sections: the parts, in their order.
    """
    head = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(line)}</p>" for line in lines)]
    links = "".join(f'<a href="#{_anchor(part)}">{html.escape(part.name)}</a>' for part in sections)
    body = "\n".join([*head, f"<nav>{links}</nav>", *(_section(part) for part in sections)])
    return write_whole(
        path,
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n",
    )


def _section(part: Section) -> str:
    header = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in part.headers)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>\n" for row in part.rows
    )
    pictures = "\n".join(_picture(plot) for plot in part.plots)
    return (
        f'<section id="{_anchor(part)}"><h2>{html.escape(part.name)}</h2><p>{html.escape(part.caption)}</p>\n'
        f'<div class="table"><table><thead><tr>{header}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n'
        f"{pictures}</section>"
    )


def _picture(plot: Path) -> str:
    data = base64.b64encode(plot.read_bytes()).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(plot.stem.replace("_", " "), quote=True)}">'


def _anchor(part: Section) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in part.name.lower())
