"""`largebatch verify`: proves on your own model, loss and data that the topology changes nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from largebatch.cli.composition.composing import run_verb
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_FAILED


def main(arguments: Sequence[str]) -> int:
    """Compose, compare, name causes; returns 0 if all factorizations agree, 1 if one differs, 2 for wrong input."""
    return run_verb("verify", run, arguments, config_name="verify")


def run(config: DictConfig, overrides: list[str]) -> int:
    """Compare factorizations of the composed run with a reference in plain torch."""
    from largebatch.experiments.verify import compare_factorizations
    from largebatch.records.report.publish import show_result, write_result
    from largebatch.records.run_folder import chosen_folder, environment
    from largebatch.run.config.reading import parse_section
    from largebatch.run.config.schema import VerifyConfig
    from largebatch.run.prepare import prepare

    options = parse_section(config, "verify", VerifyConfig)
    OmegaConf.update(config, "precision.compute", options.precision)
    OmegaConf.update(config, "precision.tf32", False)
    if config.schedule.warmup is None and config.schedule.warmup_kind == "gradual":
        OmegaConf.update(config, "schedule.warmup", "0ep")  # the first steps of a warmup hardly move the weights
    prepared = prepare(config, os.environ)
    outcome = compare_factorizations(config, prepared, options)
    if os.environ.get("RANK", "0") == "0":
        result = outcome.result()
        show_result(result)
        run = prepared.config.run
        folder = chosen_folder(run.dir, run.root, "verify")
        precision = prepared.config.precision.compute
        about = {"precision": precision, "config": prepared.public, "environment": environment()}
        write_result(result, folder / "verify.json", about=about)
    return EXIT_FAILED if outcome.failed else EXIT_DONE
