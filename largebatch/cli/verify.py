"""`largebatch verify`: proves on your own model, loss and data that the topology changes nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from largebatch.cli.composition.choices import list_choices
from largebatch.cli.composition.composing import run_verb
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_FAILED

_SUBJECTS = {"scaling": "what each scaling rule keeps at other batches, measured on the optimizer of the config"}


def main(arguments: Sequence[str]) -> int:
    """`verify [KEY=VALUE ...]` or `verify scaling [KEY=VALUE ...]`.

    Returns 0 if all factorizations agree, or every scaling rule keeps what it promises; 1 if not; 2 for wrong input.
    """
    if arguments and arguments[0] == "scaling":
        return run_verb("verify scaling", run_scaling, arguments[1:], config_name="verify", joins=False)
    if arguments and arguments[0].isidentifier():
        return list_choices("verify", _SUBJECTS, arguments)
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


def run_scaling(config: DictConfig, overrides: list[str]) -> int:
    """Drive the optimizer of the composed run at its base batch and at others."""
    from largebatch.experiments.verify.scaling import verify_scaling
    from largebatch.records.report.publish import show_result, write_result
    from largebatch.records.run_folder import chosen_folder, environment
    from largebatch.run.config.reading import parse_section, require_one_process
    from largebatch.run.config.schema import VerifyConfig
    from largebatch.run.prepare import prepare

    require_one_process(os.environ, "verify scaling drives an optimizer on one process. Start it without a launcher.")
    options = parse_section(config, "verify", VerifyConfig)
    prepared = prepare(config, os.environ)
    outcome = verify_scaling(prepared, options.scaling)
    result = outcome.result()
    show_result(result)
    run = prepared.config.run
    folder = chosen_folder(run.dir, run.root, "verify")
    about = {"config": prepared.public, "environment": environment()}
    write_result(result, folder / "scaling.json", about=about)
    return EXIT_FAILED if outcome.failed else EXIT_DONE
