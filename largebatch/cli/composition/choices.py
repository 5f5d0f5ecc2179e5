"""Prints the subjects of a verb when none of them was given."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from largebatch.cli.process.leaving import EXIT_WRONG_INPUT
from largebatch.run.config.did_you_mean import did_you_mean


def list_choices(verb: str, choices: Mapping[str, str], arguments: Sequence[str]) -> int:
    """Print the subjects of a verb, and suggest the closest one; returns the exit code.

    Args:
        verb: name of the verb.
        choices: subject -> its description.
        arguments: command line after the verb.
    """
    asked = bool(arguments) and arguments[0] in ("-h", "--help")
    width = max(map(len, choices))
    lines = [f"  {verb} {name:{width}}  {what}" for name, what in choices.items()]
    if arguments and not asked:
        meant = did_you_mean(arguments[0], choices)
        lines.insert(0, f"largebatch {verb}: {arguments[0]!r} is not one of its subjects.{meant}\n")
    usage = f"usage: largebatch {verb} WHAT ...\n"
    hint = f"\n`largebatch {verb} WHAT --help` shows what it takes."
    print("\n".join([usage, *lines, hint]), file=None if asked else sys.stderr)
    return 0 if asked else EXIT_WRONG_INPUT
