"""`largebatch measure WHAT`: measures given weights on a fixed subset of the data."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from largebatch.cli.composition.choices import list_choices
from largebatch.cli.composition.composing import run_verb

if TYPE_CHECKING:
    from largebatch.experiments.measure.weights import Measurement, Weights
    from largebatch.run.config.measure import MeasureConfig
    from largebatch.run.prepare import Prepared

# `experiments/measure/NAME.py` has `plan(prepared, options)`, which refuses wrong input and returns a `Measurement`.
MEASURES = {
    "sharpness": "largest Hessian eigenvalue, trace, Keskar's box, m-sharpness, slices through the loss",
    "variance": "gradient variance against batch size, the 1/B law, and the noise scale",
    "communication": "a step with and without its all-reduces, exposed and hidden time, latency and bandwidth",
    "gap": "training loss to validation loss: augmentation, train mode, stale statistics, generalization",
}
# They train, in the run's own number format, and cost too much to be part of `all`.
TRAINING = {
    "critical-batch": "how large the batch may be now: short branches of several batch sizes from a checkpoint",
}


ALL = "all"


def main(arguments: Sequence[str]) -> int:
    """`measure WHAT [KEY=VALUE ...]`. Returns the exit code."""
    every = {ALL: f"{', '.join(MEASURES)}, and one page with their tables and figures"}
    choices = MEASURES | TRAINING | every
    if arguments and arguments[0] in choices:
        what = arguments[0]
        return run_verb(f"measure {what}", partial(run, what), arguments[1:], config_name="measure")
    return list_choices("measure", choices, arguments)


def run(what: str, config: DictConfig, overrides: list[str]) -> int:
    """Measure the weights that `measure.checkpoint` names, on all ranks of the launcher together."""
    from largebatch.experiments.measure.weights import open_weights, parse_measure
    from largebatch.records.report.publish import show_result, write_result
    from largebatch.run.prepare import prepare

    options = parse_measure(config, keeps_format_for=what if what == "communication" or what in TRAINING else None)
    prepared = prepare(config, os.environ, joins=True)
    measurements, left_out = _planned(what, prepared, options)
    with open_weights(prepared, options.checkpoint) as weights:
        for note in prepared.notes if weights.runtime.is_main else ():
            print(note)
        records: list[Path] = []
        for name, measure in measurements.items():
            started = time.perf_counter()
            result = measure(weights)
            if result is not None:
                seconds = time.perf_counter() - started
                show_result(result)  # first: a disk may refuse the rest
                folder = records[0].parent if records else _folder(prepared, what)
                records.append(folder / f"{_module(name)}.json")
                write_result(result, records[-1], about=_about(prepared, weights) | {"seconds": seconds})
                print(f"{name} took {seconds:.1f} s")
        if what == ALL and records:
            _conclude(records, f"{prepared.config.shown_name}: {weights.source}", left_out)
    return 0


def _planned(
    what: str, prepared: Prepared, options: MeasureConfig
) -> tuple[dict[str, Measurement], list[tuple[str, str]]]:
    """The measurements by name; and those of `all` that are not possible here, with the reason.

    Raises:
        ConfigError: with the errors of all measurements.
    """
    from largebatch.experiments.measure.weights import NotMeasurableError
    from largebatch.run.config.reading import ConfigError

    errors: list[str] = []
    measurements, left_out = {}, []
    for name in MEASURES if what == ALL else (what,):
        try:
            measure = importlib.import_module(f"largebatch.experiments.measure.{_module(name)}")
            measurements[name] = measure.plan(prepared, options)
        except NotMeasurableError as reason:  # noqa: PERF203  at most five
            left_out.append((name, " ".join(reason.errors)))
        except ConfigError as error:
            errors += error.errors
    if not measurements:
        errors += [reason for _, reason in left_out]
    if errors:
        raise ConfigError(list(dict.fromkeys(errors)))  # an error that several share is reported once
    return measurements, left_out


def _module(name: str) -> str:
    return name.replace("-", "_")


def _folder(prepared: Prepared, what: str) -> Path:
    from largebatch.records.run_folder import chosen_folder

    run = prepared.config.run
    folder = chosen_folder(run.dir, run.root, what)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _conclude(records: Sequence[Path], title: str, left_out: Sequence[tuple[str, str]]) -> None:
    from largebatch.records.report.publish import write_result_page

    for name, reason in left_out:
        print(f"left out: {name}: {reason}")
    write_result_page(records[0].parent, records, title=title, left_out=left_out)


def _about(prepared: Prepared, weights: Weights) -> dict[str, object]:
    """The origin of a record's numbers: weights, world size, config, environment."""
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
