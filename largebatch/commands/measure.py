"""`largebatch measure WHAT`: quantities of given weights on a fixed subset of the data."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

EXIT_WRONG_INPUT = 2
MEASURES = {
    "sharpness": "largest Hessian eigenvalue, trace, Keskar's box, m-sharpness, slices through the loss",
}


def main(arguments: Sequence[str]) -> int:
    """`measure WHAT [KEY=VALUE ...]`. Returns the exit code."""
    if arguments and arguments[0] in MEASURES:
        measure = importlib.import_module(f"largebatch.commands.measure_{arguments[0]}")
        return int(measure.main(arguments[1:]))
    asked = bool(arguments) and arguments[0] in ("-h", "--help")
    lines = [f"  measure {name:10} {what}" for name, what in MEASURES.items()]
    if arguments and not asked:
        lines.insert(0, f"largebatch measure: {arguments[0]!r} is nothing to measure.\n")
    usage = "usage: largebatch measure WHAT [KEY=VALUE ...]\n"
    hint = "\n`largebatch measure WHAT --help` shows the configuration."
    print("\n".join([usage, *lines, hint]), file=None if asked else sys.stderr)
    return 0 if asked else EXIT_WRONG_INPUT
