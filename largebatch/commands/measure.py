"""`largebatch measure WHAT`: quantities of given weights on a fixed subset of the data."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from largebatch.commands.composition import EXIT_WRONG_INPUT, run_verb

if TYPE_CHECKING:
    from largebatch.finding import Finding
    from largebatch.measured_weights import Weights
    from largebatch.prepare import Prepared

# `commands/measure_NAME.py` has `plan(prepared, options)`, which refuses wrong input and returns a `Measurement`.
MEASURES = {
    "sharpness": "largest Hessian eigenvalue, trace, Keskar's box, m-sharpness, slices through the loss",
    "gap": "training loss to validation loss: augmentation, train mode, stale statistics, generalization",
}


def main(arguments: Sequence[str]) -> int:
    """`measure WHAT [KEY=VALUE ...]`. Returns the exit code."""
    if arguments and arguments[0] in MEASURES:
        what = arguments[0]
        return run_verb(f"measure {what}", partial(run, what), arguments[1:], config_name="measure")
    asked = bool(arguments) and arguments[0] in ("-h", "--help")
    lines = [f"  measure {name:10} {what}" for name, what in MEASURES.items()]
    if arguments and not asked:
        lines.insert(0, f"largebatch measure: {arguments[0]!r} is nothing to measure.\n")
    usage = "usage: largebatch measure WHAT [KEY=VALUE ...]\n"
    hint = "\n`largebatch measure WHAT --help` shows the configuration."
    print("\n".join([usage, *lines, hint]), file=None if asked else sys.stderr)
    return 0 if asked else EXIT_WRONG_INPUT


def run(what: str, config: DictConfig, overrides: list[str]) -> int:
    """Measure the weights that `measure.checkpoint` names, on all ranks of the launcher together."""
    from largebatch.measured_weights import open_weights, parse_measure
    from largebatch.prepare import prepare

    options = parse_measure(config)
    prepared = prepare(config, os.environ)
    measure = importlib.import_module(f"largebatch.commands.measure_{what}").plan(prepared, options)
    with open_weights(prepared, options.checkpoint) as weights:
        started = time.perf_counter()
        present = measure(weights)
        seconds = time.perf_counter() - started
        if present is not None:
            folder = _folder(prepared, what)
            _show(what, present(folder), folder, _context(prepared, weights) | {"seconds": seconds})
    return 0


def _folder(prepared: Prepared, what: str) -> Path:
    from largebatch.run_folder import new_folder

    run = prepared.config.run
    folder = Path(run.dir) if run.dir else new_folder(run.root, what)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _show(what: str, finding: Finding, folder: Path, context: dict[str, object]) -> None:
    from largebatch.trackers import print_table

    print_table(finding.headers, finding.rows, title=finding.title)
    path = folder / f"{what}.json"
    path.write_text(json.dumps(finding.record | context, indent=1) + "\n")
    for written in (path, *finding.plots):
        print(written)


def _context(prepared: Prepared, weights: Weights) -> dict[str, object]:
    """What every record says of where its numbers come from."""
    from largebatch.run_folder import environment

    return {
        "weights": weights.source,
        "checkpoint": weights.checkpoint,
        "step": weights.step,
        "world_size": weights.runtime.world_size,
        "unit": prepared.loss.unit,
        "config": prepared.public,
        "environment": environment(),
    }
