"""`largebatch measure WHAT`: quantities of given weights on a fixed subset of the data."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from largebatch.cli.composition.choices import show_choices
from largebatch.cli.composition.composing import run_verb

if TYPE_CHECKING:
    from largebatch.experiments.measure.finding import Finding, Measurement
    from largebatch.experiments.measure.weights import Weights
    from largebatch.run.config.measure import MeasureConfig
    from largebatch.run.prepare import Prepared

# `experiments/measure/NAME.py` has `plan(prepared, options)`, which refuses wrong input and returns a `Measurement`.
MEASURES = {
    "sharpness": "largest Hessian eigenvalue, trace, Keskar's box, m-sharpness, slices through the loss",
    "variance": "gradient variance against batch size, the 1/B law, and the noise scale",
    "communication": "a step with and without its all-reduces, exposed and hidden time, latency and bandwidth",
    "gap": "training loss to validation loss: augmentation, train mode, stale statistics, generalization",
}


ALL = "all"


def main(arguments: Sequence[str]) -> int:
    """`measure WHAT [KEY=VALUE ...]`. Returns the exit code."""
    choices = MEASURES | {ALL: "all of these, and a page with their tables and pictures"}
    if arguments and arguments[0] in choices:
        what = arguments[0]
        return run_verb(f"measure {what}", partial(run, what), arguments[1:], config_name="measure")
    return show_choices("measure", choices, arguments)


def run(what: str, config: DictConfig, overrides: list[str]) -> int:
    """Measure the weights that `measure.checkpoint` names, on all ranks of the launcher together."""
    from largebatch.experiments.measure.weights import open_weights, parse_measure
    from largebatch.records.trackers import print_table
    from largebatch.run.prepare import prepare

    options = parse_measure(config)
    prepared = prepare(config, os.environ)
    measurements, left_out = _planned(what, prepared, options)
    with open_weights(prepared, options.checkpoint) as weights:
        for note in prepared.notes if weights.runtime.is_main else ():
            print(note)
        folder, shown = None, []
        for name, measure in measurements.items():
            started = time.perf_counter()
            finding = measure(weights)
            if finding is not None:
                seconds = time.perf_counter() - started
                print_table(finding.headers, finding.rows, title=finding.title)  # first: a disk may refuse the rest
                folder = folder or _folder(prepared, what)
                plots = _write(name, finding, seconds, folder, _context(prepared, weights))
                shown.append((name, finding, seconds, plots))
        if what == ALL and folder is not None:
            _conclude(folder, prepared, weights, shown, left_out)
    return 0


def _planned(
    what: str, prepared: Prepared, options: MeasureConfig
) -> tuple[dict[str, Measurement], list[tuple[str, str]]]:
    """The measurements by name, and of `all` those that do not exist here, with the reason.

    Raises:
        ConfigError: with all that is wrong, of all measurements.
    """
    from largebatch.experiments.measure.finding import NotMeasurableError
    from largebatch.run.config.reading import ConfigError

    errors: list[str] = []
    measurements, left_out = {}, []
    for name in MEASURES if what == ALL else (what,):
        try:
            measure = importlib.import_module(f"largebatch.experiments.measure.{name}")
            measurements[name] = measure.plan(prepared, options)
        except NotMeasurableError as reason:  # noqa: PERF203  at most five
            left_out.append((name, " ".join(reason.errors)))
        except ConfigError as error:
            errors += error.errors
    if not measurements:
        errors += [reason for _, reason in left_out]
    if errors:
        raise ConfigError(list(dict.fromkeys(errors)))  # what is wrong for several is told once
    return measurements, left_out


def _folder(prepared: Prepared, what: str) -> Path:
    from largebatch.records.run_folder import new_folder

    run = prepared.config.run
    folder = Path(run.dir) if run.dir else new_folder(run.root, what)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(name: str, finding: Finding, seconds: float, folder: Path, context: dict[str, object]) -> Sequence[Path]:
    """The numbers, then the pictures, which are returned."""
    from largebatch.records.durable_files import write_record

    print(write_record(folder / f"{name}.json", finding.record | context | {"seconds": seconds}))
    plots = finding.draw(folder)
    for plot in plots:
        print(plot)
    return plots


def _conclude(
    folder: Path,
    prepared: Prepared,
    weights: Weights,
    shown: Sequence[tuple[str, Finding, float, Sequence[Path]]],
    left_out: Sequence[tuple[str, str]],
) -> None:
    """The page of all that was measured, and how long each took."""
    from largebatch.records.figures.page import Section, write_page
    from largebatch.records.trackers import print_table

    times = [(name, f"{seconds:.1f} s", finding.title) for name, finding, seconds, _ in shown]
    times += [(name, "left out", reason) for name, reason in left_out]
    overview = Section("overview", "What was measured, and how long it took.", ("what", "took", "of what"), times)
    parts = [Section(name, found.title, found.headers, found.rows, plots) for name, found, _, plots in shown]
    name = prepared.config.shown_name
    page = write_page(
        folder / "page.html",
        title=f"{name}: {weights.source}",
        lines=[f"{weights.runtime.world_size} processes, {weights.runtime.device.type}, {weights.runtime.precision}"],
        sections=[overview, *parts],
    )
    print_table(overview.headers, overview.rows, title="measured")
    print(page)


def _context(prepared: Prepared, weights: Weights) -> dict[str, object]:
    """What every record says of where its numbers come from."""
    from largebatch.records.run_folder import environment

    return {
        "weights": weights.source,
        "checkpoint": weights.checkpoint,
        "step": weights.step,
        "world_size": weights.runtime.world_size,
        "unit": prepared.loss.unit,
        "config": prepared.public,
        "environment": environment(),
    }
