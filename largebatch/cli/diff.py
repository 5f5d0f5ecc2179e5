"""`largebatch diff A B`: finds the first step in which two runs differ, and names the quantity that differs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from largebatch.cli.arguments import with_arguments
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_FAILED


def main(arguments: Sequence[str]) -> int:
    """`diff A B [--loss-tolerance R]`; returns 0 if the ledgers agree, 1 if they differ, 2 for wrong input."""
    return with_arguments(_parser(), arguments, _read, _conclude)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="largebatch diff",
        description="Are these two runs the same, step for step? Finds the first optimizer step in which their ledgers "
        "differ, and names the difference: position, sample ids, learning rate, loss or weights. Exit code 0: equal; "
        "1: different; 2: wrong input.",
        epilog="Other questions: `largebatch compare` estimates the cost of a larger batch; `largebatch report` draws "
        "everything that runs have recorded.",
    )
    parser.add_argument("first", metavar="A", help="folder of a run, or a ledger.jsonl")
    parser.add_argument("second", metavar="B", help="the other one")
    parser.add_argument(
        "--loss-tolerance",
        type=_tolerance,
        default=0.0,
        metavar="R",
        help="largest relative difference of losses that count as equal (default: 0, bitwise). Runs on different "
        "numbers of ranks need one: their sums differ in the last digits. Hashes of parameters are then not compared",
    )
    return parser


def _tolerance(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: a tolerance is a finite number, 0 or more.")
    return value


def _read(options: argparse.Namespace) -> tuple[bool, list[str]]:
    from largebatch.records.ledger_diff import diff_ledgers

    return diff_ledgers((options.first, options.second), loss_tolerance=options.loss_tolerance)


def _conclude(options: argparse.Namespace, found: tuple[bool, list[str]]) -> int:
    is_equal, lines = found
    print("\n".join(lines))
    return EXIT_DONE if is_equal else EXIT_FAILED
