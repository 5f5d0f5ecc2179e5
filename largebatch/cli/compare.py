"""`largebatch compare RUN...`: the large-batch gap between runs at different batch sizes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from largebatch.cli.arguments import with_arguments
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_IN_PART

if TYPE_CHECKING:
    from largebatch.records.result import Result


def main(arguments: Sequence[str]) -> int:
    """`compare RUN... [--out FOLDER]`.

    Returns 0; 2 if there is nothing to compare; 3 if runs, or lines of runs, were left out; stderr names them.
    """
    return with_arguments(_parser(), arguments, _read, _conclude)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="largebatch compare",
        description="What does the larger batch cost? Compares validation loss and accuracy of runs at different batch "
        "sizes with those at the smallest one: at equal samples, equal steps and equal training loss. Seeds of one "
        "batch size are replicates; an interval needs three or more of each.",
        epilog="Other questions: `largebatch report` draws everything that runs have recorded; `largebatch diff` "
        "finds the first step in which two runs differ. Exit code 0: done; 2: nothing to compare; 3: done, but some "
        "runs were left out; stderr names them.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run")
    parser.add_argument(
        "--target",
        metavar="METRIC=VALUE",
        help="such as eval/val_loss=0.2: also what each batch size takes to it, in steps, samples, time, price and "
        "energy, and which batch sizes no other one beats in time and samples",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="for large_batch_gap.json, gap.png and page.html; default: a new folder"
    )
    return parser


def _read(options: argparse.Namespace) -> tuple[Result, list[str]]:
    from largebatch.experiments.large_batch_gap import compare_runs
    from largebatch.experiments.target_costs import parse_target, with_costs

    target = None if options.target is None else parse_target(options.target)
    result, left_out = compare_runs(options.runs, on_left_out=partial(print, file=sys.stderr))
    return (result if target is None else with_costs(result, target)), left_out


def _conclude(options: argparse.Namespace, found: tuple[Result, list[str]]) -> int:
    from largebatch.records.report.publish import show_result, write_result, write_result_page
    from largebatch.records.run_folder import chosen_folder

    result, left_out = found
    show_result(result)
    record = chosen_folder(options.out, "runs", "compare") / "large_batch_gap.json"
    write_result(result, record, about={})
    write_result_page(record.parent, [record], title=result.tables[0].title)
    return EXIT_IN_PART if left_out else EXIT_DONE
