"""Names for people of what a run's settings say: data set and model, and the optimizer."""

from __future__ import annotations

from collections.abc import Mapping

from largebatch.records.figures.optimizer_names import optimizer_name
from largebatch.records.regular_files import printable

_MOST_LETTERS = 80


def task_of(settings: Mapping[str, str]) -> str:
    """Data set and model of a run with these settings."""
    data = settings.get("data.name") or settings.get("data.validation._target_", "unknown data")
    model = settings.get("model._target_", "unknown model").rpartition(".")[2]
    return f"{shortened(data)}, {shortened(model)}"


def optimizer_of(settings: Mapping[str, str]) -> str:
    """The optimizer of a run with these settings: its name for people."""
    return optimizer_name(shortened(settings.get("optimizer._target_", "unknown optimizer").rpartition(".")[2]))


def shortened(text: str) -> str:
    """The beginning of a text that may be as long as a file.

    >>> shortened("a" * 500)[-20:]
    'aaa... (500 letters)'
    """
    shown = printable(text[:_MOST_LETTERS])
    return shown if len(text) <= _MOST_LETTERS else f"{shown}... ({len(text):,} letters)"
