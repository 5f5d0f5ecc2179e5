"""`largebatch report FOLDER...`: one page of everything that runs, measurements and studies have recorded."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largebatch.cli.arguments import with_arguments
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_FAILED, EXIT_IN_PART
from largebatch.records.regular_files import printable

if TYPE_CHECKING:
    from largebatch.records.report import Evidence


def main(arguments: Sequence[str]) -> int:
    """`report FOLDER... [--out FILE] [--wandb PROJECT]`.

    Returns 0; 1 if the page cannot be written; 2 if there is nothing to show; 3 if the page is incomplete: it names
    every folder that was left out or is damaged.
    """
    return with_arguments(_parser(), arguments, _read, _conclude)


def _read(options: argparse.Namespace) -> Evidence:
    from largebatch.records.report import read_evidence
    from largebatch.records.trackers import mode_of

    if options.wandb:
        mode_of("auto", os.environ)  # refuses a WANDB_MODE that does not exist
    if not (evidence := read_evidence(options.folders)):
        _print_gaps(evidence)
        raise ValueError(
            f"nothing of {len(options.folders)} given can be shown. A report needs at least one folder that "
            "`largebatch train`, `measure`, `compare`, `study` or `find-lr` has written, or a folder above it. "
            "Train first, or name another folder."
        )
    return evidence


def _conclude(options: argparse.Namespace, evidence: Evidence) -> int:
    from largebatch.records.report import write_report

    path = Path(options.out)
    try:
        title = options.title or _title(options.folders)
        written = write_report(evidence, path, title=title)
    except OSError as error:
        _print_gaps(evidence)
        print(f"largebatch report: {error}. Choose another place with --out FILE.", file=sys.stderr)
        return EXIT_FAILED
    shown = written.evidence
    _print_gaps(shown)
    print(f"{len(shown.runs)} runs, {sum(map(len, shown.records.values()))} records")
    print(path)
    if options.wandb:
        _log_to_wandb(options, title, path, written.figures)
    return EXIT_IN_PART if shown.left_out or shown.damaged else EXIT_DONE


def _print_gaps(evidence: Evidence) -> None:
    """Name on stderr everything that the page omits or shows only in part."""
    for what, found in (("left out", evidence.left_out), ("damaged", evidence.damaged)):
        for one in found:
            print(f"{what}: {printable(one.path)}: {printable(one.reason)}", file=sys.stderr)


def _log_to_wandb(
    options: argparse.Namespace, title: str, path: Path, figures: Mapping[str, Mapping[str, Any]]
) -> None:
    """Log figures and page as a W&B run of their own; without a key it is offline, beside the page."""
    from largebatch.records.trackers import WandbTracker

    tracker = WandbTracker(
        folder=path.parent,
        config={"folders": list(options.folders)},
        defaults={"name": title, "job_type": "report"},
        project=options.wandb,
        name=options.title,
    )
    tracker.show({f"report/{key}": figure for key, figure in figures.items()}, {"report/page": path})
    tracker.finish({"figures": len(figures)}, [])
    if tracker.sync_command:
        print(f"upload: {tracker.sync_command}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="largebatch report",
        description="What have my runs found? Writes one self-contained HTML page (about 5 MB) of runs, measurements, "
        "comparisons, studies and learning-rate searches: a verdict, figures, and links to every run. It needs no "
        "network.",
        epilog="Other questions: `largebatch compare` tests what a larger batch costs; `largebatch diff` finds the "
        "first step in which two runs differ. Exit code 0: complete; 1: the page cannot be written; 2: nothing to "
        "show; 3: incomplete: stderr names every folder that was left out or is damaged.",
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", help="a folder to show, with all folders below it")
    parser.add_argument("--out", metavar="FILE", default="report.html", help="the page (default: report.html)")
    parser.add_argument("--wandb", metavar="PROJECT", help="also log figures and page to W&B; offline without a key")
    parser.add_argument("--title", metavar="TEXT", help="heading of the page")
    return parser


def _title(folders: Sequence[str]) -> str:
    first = Path(folders[0]).resolve().name
    return f"largebatch: {first}" + (f" and {len(folders) - 1} more" if len(folders) > 1 else "")
