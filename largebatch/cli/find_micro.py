"""`largebatch find-micro`: finds the largest micro-batch that fits on all ranks, and the smallest that is as fast."""

from __future__ import annotations

import os
from collections.abc import Sequence

from omegaconf import DictConfig

from largebatch.cli.composition.composing import run_verb
from largebatch.cli.process.leaving import EXIT_FAILED


def main(arguments: Sequence[str]) -> int:
    """Compose, try, tell; returns 0 if a micro-batch fits, 1 if none does, 2 for wrong input."""
    return run_verb("find-micro", run, arguments, config_name="find_micro")


def run(config: DictConfig, overrides: list[str]) -> int:
    """Try micro-batches on all ranks of the launcher together; print and write what they found."""
    from largebatch.experiments.find_micro.predicted import predicted_fit
    from largebatch.experiments.find_micro.result import result_of
    from largebatch.experiments.find_micro.settings import FindMicroConfig, sizes_of
    from largebatch.experiments.find_micro.tries import run_tries, sizes_for
    from largebatch.experiments.measure.weights import open_weights
    from largebatch.records.report.publish import show_result, write_result
    from largebatch.records.run_folder import chosen_folder, environment
    from largebatch.run.config.reading import parse_section
    from largebatch.run.prepare import prepare

    options = parse_section(config, "find_micro", FindMicroConfig)
    prepared = prepare(config, os.environ, joins=True)
    is_on_gpu = prepared.decisions.device.is_gpu
    sizes = sizes_of(prepared, options, is_on_gpu=is_on_gpu)
    # Before the ranks meet: a prediction has imagined ones, and by now no device holds the model.
    is_first = os.environ.get("RANK", "0") == "0"
    predicted = predicted_fit(prepared, options, sizes, is_on_gpu=is_on_gpu) if is_first else None
    with open_weights(prepared, None) as weights:
        sizes = sizes_for(sizes, prepared, weights)
        tries = run_tries(prepared, weights, options, sizes)
        if weights.runtime.is_main:
            optimizer = str(prepared.config.optimizer["_target_"]).rpartition(".")[2]
            ranks = f"{sizes.world_size} {'rank' if sizes.world_size == 1 else 'ranks'}"
            title = f"micro-batches of {prepared.config.shown_name}, {optimizer}, {ranks}"
            result = result_of(tries, sizes, options, predicted, title=title)
            about = {
                "world_size": weights.runtime.world_size,
                "settings": options.model_dump(),
                "config": prepared.public,
                "environment": environment(),
            }
            folder = chosen_folder(prepared.config.run.dir, prepared.config.run.root, "find-micro")
            show_result(result)
            write_result(result, folder / "find_micro.json", about=about)
    return 0 if any(one.fits for one in tries) else EXIT_FAILED
