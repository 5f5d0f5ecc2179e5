"""Argument parsing, input errors and exit codes of the verbs without a config."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import TypeVar

from largebatch.cli.process.leaving import EXIT_DONE, EXIT_WRONG_INPUT
from largebatch.records.regular_files import printable

Input = TypeVar("Input")


def with_arguments(
    parser: ArgumentParser,
    arguments: Sequence[str],
    read: Callable[[Namespace], Input],
    conclude: Callable[[Namespace, Input], int],
) -> int:
    """Parse the arguments of a verb, read its input, and call `conclude` with it.

    Args:
        parser: parser of the verb.
        arguments: command line after the verb.
        read: loads the input that the arguments name; its OSError or ValueError is printed as wrong input.
        conclude: computes the answer; returns the exit code. Its exceptions are bugs and propagate.

    Returns:
        the exit code; 0 after --help; 2 for wrong input.
    """
    try:
        options = parser.parse_args(list(arguments))
    except SystemExit as exit_:
        return EXIT_WRONG_INPUT if exit_.code else EXIT_DONE
    try:
        found = read(options)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {printable(error, lines=True)}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    return conclude(options, found)
