"""`largebatch doctor`: finds problems of this machine that would stop a run, each with its remedy."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from largebatch.cli.arguments import with_arguments
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_FAILED

if TYPE_CHECKING:
    from largebatch.run.config.schema import TrainConfig


def main(arguments: Sequence[str]) -> int:
    """`doctor [--folder FOLDER] [--network] [--json]`; returns 0, 1 if there is a problem, 2 for wrong input."""
    return with_arguments(_parser(), arguments, _read, _conclude)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="largebatch doctor",
        description="Run every check of a run's start; look at versions, devices, memory, disk and ports; start two "
        "processes and let them all-reduce. Run it where the job will run: under srun or in its container. Exit code "
        "1: something would stop a run.",
    )
    parser.add_argument("--folder", default="runs", help="where runs will be written (default: runs)")
    parser.add_argument(
        "--network", action="store_true", help="also connect to the W&B server; otherwise nothing is sent"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    return parser


def _read(options: argparse.Namespace) -> TrainConfig:
    """The default config, with its run folder in `--folder`."""
    from omegaconf import OmegaConf

    from largebatch.cli.composition.composing import compose_config
    from largebatch.run.config.reading import parse_config

    config = compose_config()
    OmegaConf.update(config, "run.root", options.folder)
    return parse_config(config)


def _conclude(options: argparse.Namespace, config: TrainConfig) -> int:
    from largebatch.run.doctor.examination import examine

    found = examine(config, os.environ, network=options.network)
    counts = Counter(one.state for one in found)
    if options.json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    else:
        from largebatch.records.trackers import print_table

        rows = [(one.subject, one.state, one.found) for one in found]
        print_table(("what", "state", "finding and remedy"), rows, title="this machine")
        told = (f"{counts[name]} {name}{'s' * (counts[name] != 1)}" for name in ("problem", "note"))
        print(f"{', '.join(told)}, {counts['ok']} fine")
    return EXIT_FAILED if counts["problem"] else EXIT_DONE
