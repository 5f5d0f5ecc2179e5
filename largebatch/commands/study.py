"""`largebatch study`: steps and samples to a target against the batch size."""

from __future__ import annotations

from collections.abc import Sequence

from largebatch.commands.choices import show_choices

# `commands/study_NAME.py` has `main(arguments)`.
PARTS = {
    "analyze": "fit S_min, E_min and B_crit to a CSV file: `study analyze FILE [--out FOLDER]`",
}


def main(arguments: Sequence[str]) -> int:
    """`study analyze FILE`; returns the exit code."""
    import importlib

    if arguments and arguments[0] in PARTS:
        return int(importlib.import_module(f"largebatch.commands.study_{arguments[0]}").main(arguments[1:]))
    return show_choices("study", PARTS, arguments)
