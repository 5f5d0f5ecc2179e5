"""What a section of the page is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from largebatch.records.figures.figure import Figure


@dataclass(frozen=True)
class Option:
    """One of several things to choose from.

    Attributes:
        label: in the list of choices.
        figures: in their order.
        before: HTML above them.
        explorer: the number of the explorer that it is; None: it is none.
    """

    label: str
    figures: Sequence[Figure]
    before: str = ""
    explorer: int | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: of its anchor.
        title: its heading.
        before: HTML above the figures.
        figures: in their order.
        options: of which one is shown at a time.
    """

    key: str
    title: str
    before: str = ""
    figures: Sequence[Figure] = ()
    options: Sequence[Option] = ()

    @property
    def all_figures(self) -> list[Figure]:
        """Those of the options too."""
        return [*self.figures, *(shown for option in self.options for shown in option.figures)]
