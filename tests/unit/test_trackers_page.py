from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

from matplotlib.figure import Figure

from largebatch.records.figures.page import Section, write_page


class Reader(HTMLParser):
    """Cells, links, targets and sources of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        self._inside = tag in ("td", "th")
        if self._inside:
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells[-1] += data


def page(tmp_path: Path, *sections: Section, title: str = "a title") -> str:
    return write_page(tmp_path / "page.html", title=title, lines=["a line"], sections=sections).read_text()


def test_cells_come_back_as_they_were_whatever_they_hold(tmp_path: Path) -> None:
    odd = "<script>alert('&amp;')</script>"
    text = page(tmp_path, Section("a part", odd, ("what", odd), [(odd, 1.5)]), title=odd)
    assert Reader(text).cells == ["what", odd, odd, "1.5"]
    assert "<script" not in text


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    picture = tmp_path / "a_plot.png"
    Figure(figsize=(1, 1)).savefig(picture)
    text = page(tmp_path, Section("part", "caption", ("x",), [], [picture]))
    attributes = Reader(text).attributes
    (source,) = [value for name, value in attributes if name == "src"]
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == picture.read_bytes()
    assert ("alt", "a plot") in attributes
    assert not re.search(r"https?:|@import|url\(|<link", text)


def test_every_part_is_linked_from_the_head(tmp_path: Path) -> None:
    parts = [Section(name, "", ("x",), []) for name in ("overview", "Noise scale")]
    attributes = Reader(page(tmp_path, *parts)).attributes
    assert [value for name, value in attributes if name == "href"] == ["#overview", "#noise-scale"]
    assert [value for name, value in attributes if name == "id"] == ["overview", "noise-scale"]
