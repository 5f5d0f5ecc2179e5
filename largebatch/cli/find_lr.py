"""`largebatch find-lr`: suggests a learning rate for a batch by a range test."""

from __future__ import annotations

import os
from collections.abc import Sequence

from omegaconf import DictConfig

from largebatch.cli.composition.composing import run_verb
from largebatch.cli.process.leaving import EXIT_FAILED


def main(arguments: Sequence[str]) -> int:
    """Compose, test, suggest; returns 0 if a rate is suggested for every batch, 1 if not, 2 for wrong input."""
    return run_verb("find-lr", run, arguments, config_name="find_lr")


def run(config: DictConfig, overrides: list[str]) -> int:
    """Run the range tests on all ranks of the launcher together; print and write the suggestion."""
    from largebatch.experiments.find_lr import FindLrConfig, plans_of, result_of, run_range_tests
    from largebatch.experiments.measure.weights import open_weights
    from largebatch.records.report.publish import show_result, write_result
    from largebatch.records.run_folder import chosen_folder, environment
    from largebatch.run.config.reading import parse_section
    from largebatch.run.prepare import prepare

    options = parse_section(config, "find_lr", FindLrConfig)
    prepared = prepare(config, os.environ, joins=True)
    plans = plans_of(prepared, options, world_size=int(os.environ.get("WORLD_SIZE", "1")))
    seeds = [prepared.config.seed + number for number in range(options.seeds)]
    with open_weights(prepared, options.checkpoint, key="find_lr.checkpoint") as weights:
        tests = run_range_tests(prepared, weights, plans, options, seeds)
        if weights.runtime.is_main:
            optimizer = str(prepared.config.optimizer["_target_"]).rpartition(".")[2]
            title = f"learning rates for {prepared.config.shown_name}, {optimizer}, from {weights.source}"
            result = result_of(tests, title=title)
            about = {
                "unit": prepared.loss.unit,
                "weights": weights.source,
                "world_size": weights.runtime.world_size,
                "settings": options.model_dump(),
                "config": prepared.public,
                "environment": environment(),
            }
            folder = chosen_folder(prepared.config.run.dir, prepared.config.run.root, "find-lr")
            show_result(result)
            write_result(result, folder / "find_lr.json", about=about)
    return 0 if all(one.suggestion.lr is not None for one in tests) else EXIT_FAILED
