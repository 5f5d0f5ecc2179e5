"""The sections of the page, and their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from largebatch.records.figures.figure import Figure


@dataclass(frozen=True)
class Option:
    """One of several things to choose from.

    Attributes:
        label: in the list of choices.
        figures: in their order.
        before, after: HTML above and below them.
        experiment, optimizer: of the runs that it shows, by which a reader filters; empty: of several.
        explorer: the number of the explorer that it is; None: it is none.
    """

    label: str
    figures: Sequence[Figure]
    before: str = ""
    explorer: int | None = None
    after: str = ""
    experiment: str = ""
    optimizer: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: its anchor.
        title: its heading.
        before: HTML above the options.
        options: one of them is shown at a time.
    """

    key: str
    title: str
    before: str = ""
    options: Sequence[Option] = ()


@dataclass(frozen=True)
class Addition:
    """What a verb adds to the page of its evidence.

    Attributes:
        arrange: the sections of the evidence -> all sections, in their order.
        scripts: run after those of the page; they find `data` in DATA.
        style: CSS behind that of the page.
        data: values for JSON.
    """

    arrange: Callable[[Sequence[Section]], Sequence[Section]]
    scripts: Sequence[str]
    style: str
    data: Mapping[str, Any]
