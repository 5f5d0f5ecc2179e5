"""What an experiment of the textbook has to tell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from largebatch.records.figures.diagram import Diagram, Surface


@dataclass(frozen=True)
class Table:
    """Cells as shown.

    Attributes:
        title: what was measured, on what.
        headers: of the columns.
        rows: as many cells as there are headers.
    """

    title: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Story:
    """A question, and what the runs answer.

    Attributes:
        title: of the experiment.
        question: that it asks.
        answer: sentences that follow from the measured numbers, where they disagree with the theory as well.
        tables: for people.
        figures: for people.
        numbers: the same for programs; what is not finite becomes None.
    """

    title: str
    question: str
    answer: str
    tables: tuple[Table, ...]
    figures: tuple[Diagram | Surface, ...]
    numbers: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Ready for JSON.

        >>> Story("A title", "Why?", "Because.", (), (), {"loss": float("inf")}).record()["numbers"]
        {'loss': None}
        """
        return {
            "title": self.title,
            "question": self.question,
            "answer": self.answer,
            "tables": [dataclasses.asdict(table) for table in self.tables],
            "figures": [figure.record() for figure in self.figures],
            "numbers": _plain(self.numbers),
        }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if hasattr(value, "tolist"):  # arrays and scalars of numpy
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
