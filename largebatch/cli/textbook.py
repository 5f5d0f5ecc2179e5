"""`largebatch textbook NAME`: runs an experiment of the textbook chapter on batch size: figures, table, answer."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from largebatch.cli.composition.choices import list_choices
from largebatch.cli.composition.composing import compose_config, run_verb

if TYPE_CHECKING:
    from largebatch.records.result import Result

# Each is largebatch/experiments/textbook/NAME.py and conf/experiment/textbook/NAME.yaml.
EXPERIMENTS = {
    "gd_variants": "batch, stochastic and mini-batch gradient descent: loss over epochs, updates and time; three paths",
    "convergence": "steps to a loss of eps: log(1/eps), sigma^2/eps, sigma^2/(B eps)",
    "learning_rate": "rates that converge, oscillate and diverge on a quadratic, and the limit of stability",
    "gradient_variance": "the 1/B law at B = 1, 10, 100, 1000, before and after training",
    "unbiasedness": "the mean of many mini-batch gradients against the full one; what the batches of an epoch add to",
    "accumulation": "256 samples from 8 micro-batches of 32 against 256 at once, in both precisions",
    "linear_scaling": "k times the rate for k times the batch: one step against k, whole runs, where it breaks and why",
    "warmup": "none, constant and gradual before a large rate: which rates train, and the jump after a constant one",
    "lars": "SGD, LARS and LAMB from batch 32 to all samples, each with a rate tuned for every batch size",
    "noise_and_minima": "sharpness and generalization gap against batch size, at equal epochs and equal steps",
    "quadratic_methods": "momentum, averages and preconditioners on the noisy quadratic: which matter at which batch",
    "powers_of_two": "batch sizes that are powers of two, timed against one sample less and one more",
}
ALL, PAGE = "all", "page"
_OTHERS = {
    ALL: "all of these, each into a folder of its name, and one page",
    PAGE: "the chapter as one page: widgets, questions, tables; `page FOLDER` shows measured results beside them",
}
_RECORD = "textbook.json"


_ONE_PROCESS = (
    "an experiment of the textbook is many small runs in sequence, in one process. Start it without a "
    "launcher: python -m largebatch textbook NAME."
)


def main(arguments: Sequence[str]) -> int:
    """`textbook NAME [KEY=VALUE ...]`. Returns the exit code, for `all` the worst one."""
    if arguments and arguments[0] == ALL:
        return _run_all(arguments[1:])
    if arguments and arguments[0] == PAGE:
        from largebatch.cli.textbook_page import main as write_page

        return write_page(arguments[1:])
    if arguments and arguments[0] in EXPERIMENTS:
        return run_experiment(arguments[0], arguments[1:])
    return list_choices("textbook", EXPERIMENTS | _OTHERS, arguments)


def run_experiment(name: str, arguments: Sequence[str]) -> int:
    """Run one experiment as if it had been typed; returns its exit code."""
    chosen = [f"experiment=textbook/{name}", *arguments]
    return run_verb(f"textbook {name}", partial(run, name), chosen, config_name="textbook")


def _run_all(arguments: Sequence[str]) -> int:
    """Run every experiment, each by itself: one that fails does not stop the others."""
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith("run.dir=")]
    others = [argument for argument in arguments if not argument.startswith("run.dir=")]
    if not all("=" in argument for argument in others):  # --help, --cfg job: shown for the first experiment
        return run_experiment(next(iter(EXPERIMENTS)), others)
    folder = Path(given[-1]) if given else Path("runs", "textbook", time.strftime("%Y-%m-%d_%H-%M-%S"))
    code = max(run_experiment(name, [*others, f"run.dir={folder / name}"]) for name in EXPERIMENTS)
    if records := [path for name in EXPERIMENTS if (path := folder / name / _RECORD).is_file()]:
        from largebatch.experiments.textbook.lesson.page import write_chapter
        from largebatch.records.report.reading import read_records

        write_chapter(read_records(records), folder / "page.html", title="Batch size: the chapter, run")
        print(folder / "page.html")
    return code


def run(name: str, config: DictConfig, overrides: list[str]) -> int:
    """Make the runs of an experiment; print and write its answer."""
    from largebatch.experiments.textbook.experiment import Experiment
    from largebatch.records.report.publish import show_result, write_result, write_result_page
    from largebatch.records.run_folder import environment
    from largebatch.records.trackers.console import status
    from largebatch.run.config.reading import parse_config, parse_section, public_values, require_one_process

    started = time.perf_counter()
    require_one_process(os.environ, _ONE_PROCESS)
    public = public_values(config)
    module = importlib.import_module(f"largebatch.experiments.textbook.{name}")
    settings = parse_section(config, "textbook", module.Settings)
    config.seed = parse_config(config).seed  # a number, also where the environment gave a text
    folder = _folder(name, config)

    def compose(choices: Sequence[str]) -> DictConfig:
        composed = compose_config([*overrides, *choices], config_name="textbook")
        parse_section(composed, "textbook", module.Settings)
        return composed

    with status(f"{name}: begins") as line:
        experiment = Experiment(
            config,
            folder,
            compose=compose,
            on_run=lambda run, number: line.update(f"{name}: {number} runs are done, now {run}"),
        )
        found: Result = module.run(experiment, settings)
    result = replace(found, runs=experiment.runs)
    about = {"name": name, "seconds": time.perf_counter() - started, "config": public, "environment": environment()}
    path = folder / _RECORD
    show_result(result)
    write_result(result, path, about=about)
    write_result_page(folder, [path], title=result.title)
    return 0


def _folder(name: str, config: DictConfig) -> Path:
    from largebatch.records.run_folder import chosen_folder
    from largebatch.run.config.reading import ConfigError

    folder = chosen_folder(config.run.dir, config.run.root, f"textbook/{name}")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            [f"run.dir={folder}: is not empty, and an experiment does not mix its runs with others. Name another "
             "folder, or remove this one."]
        )  # fmt: skip
    return folder
