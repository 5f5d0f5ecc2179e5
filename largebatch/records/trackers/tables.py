"""Tables on the console: cells are wrapped between words, never cut."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_GAP = 3  # between columns: blanks, and a line where the output has no Unicode


def screen(*, stderr: bool = False) -> Console:
    """Stdout or stderr as they are now, also in a notebook: there rich would write past a stdout that is redirected."""
    return Console(stderr=stderr, force_jupyter=False)


def print_plan(
    plan_rows: Sequence[tuple[str, object, str]], *, title: str = "plan", console: Console | None = None
) -> None:
    """Print a table of (what, value, where it comes from)."""
    headers, styles = ("what", "value", "where it comes from"), ("", "bold", "dim")
    print_table(headers, plan_rows, title=title, styles=styles, console=console)


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str,
    styles: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Print a table. Brackets in a value are not markup.

    Words stay whole where the terminal is wide enough for one of each column, and always in a file or a pipe, whose
    lines may be longer: there they are searched and cut into columns by programs.
    """
    console = console or screen()
    cells = [[*map(str, row)] for row in rows]
    widths = column_widths([headers, *cells], console.width - _around(headers))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    needed = sum(widths) + _around(headers)
    is_fixed = needed <= console.width or not console.is_terminal
    for number, header in enumerate(headers):
        width = widths[number] if is_fixed else None
        table.add_column(header, style=styles[number] if number < len(styles) else "", overflow="fold", width=width)
    for row in cells:
        table.add_row(*map(Text, row))
    before = console.width
    try:
        console.width = max(before, needed) if is_fixed else before
        console.print(Text(title, "bold"))  # not the table's: that would be wrapped to its width
        console.print(table)
    finally:
        console.width = before


def _around(headers: Sequence[str]) -> int:
    return _GAP * (len(headers) - 1) + 2


def column_widths(rows: Sequence[Sequence[str]], available: int) -> list[int]:
    """Widths with which no word is broken: more than `available` together only if the longest words are.

    What is left beyond them goes to the columns that need least first: short cells stay one line.

    >>> column_widths([["steps", "a b c d"], ["number", "eeee"]], 30), column_widths([["steps", "a b c d"]], 8)
    ([6, 7], [5, 3])
    """
    columns = [*zip(*rows, strict=True)]
    words = [max(cell_len(word) for cell in column for word in (cell.split() or [""])) for column in columns]
    wished = [max(cell_len(line) for cell in column for line in (cell.splitlines() or [""])) for column in columns]
    widths, left = list(words), max(available - sum(words), 0)
    by_need = sorted(range(len(columns)), key=lambda number: wished[number] - words[number])
    for place, number in enumerate(by_need):
        more = min(wished[number] - words[number], left // (len(columns) - place))
        widths[number] += more
        left -= more
    return widths
