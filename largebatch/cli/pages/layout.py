"""Lines of a help page, wrapped to the width of the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator

from largebatch.cli.catalogue.files import Setting

_NARROWEST = 40
_WIDEST_LEFT = 44


def page_width() -> int:
    """Columns of the terminal, or COLUMNS; 100 where there is neither."""
    return max(shutil.get_terminal_size((100, 24)).columns, _NARROWEST)


def wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    """A paragraph; words are not broken, so that what is to be typed can be copied.

    >>> wrapped("samples per optimizer step", 14, 2)
    ['  samples per', '  optimizer', '  step']
    """
    return textwrap.wrap(
        text,
        width,
        initial_indent=" " * indent,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def two_columns(rows: Iterable[tuple[str, str]], width: int, indent: int = 2) -> Iterator[str]:
    """Each row's text beside its name, all of them beginning in one column; below a name that is too long.

    >>> list(two_columns([("seed=0", "seeds all random draws"), ("length=30ep", "")], 24))
    ['  seed=0  seeds all', '          random draws', '  length=30ep']
    """
    rows = list(rows)
    widest = min(_WIDEST_LEFT, width * 45 // 100)
    left = max((len(name) for name, text in rows if text and len(name) <= widest), default=0)
    column = indent + left + 2
    for name, text in rows:
        start = f"{' ' * indent}{name}"
        lines = wrapped(text, width, column)
        if lines and len(start) + 2 <= column:
            lines[0] = f"{start:{column}}{lines[0].lstrip()}"
        else:
            lines.insert(0, start)
        yield from lines


def setting_row(setting: Setting) -> tuple[str, str]:
    """What is typed, and the comment."""
    return (setting.key if setting.is_section else f"{setting.key}={setting.value}", setting.comment)
