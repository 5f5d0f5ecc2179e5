"""`largebatch attribute`: splits the loss of a larger batch into fewer steps, less noise, unscaled hyper-parameters."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from largebatch.cli.composition.composing import run_verb
from largebatch.cli.process.leaving import EXIT_DONE, code_of

if TYPE_CHECKING:
    from largebatch.experiments.attribution.corners import Corner


def main(arguments: Sequence[str]) -> int:
    """Compose, make the missing runs, attribute; returns the exit code."""
    return run_verb("attribute", run, arguments, config_name="attribute")


def run(config: DictConfig, overrides: list[str]) -> int:
    """Train the matched runs on all ranks of the launcher together; print and write the parts."""
    from largebatch.distributed.signals import StopRequest
    from largebatch.experiments.attribution.attribution_result import attribution_result, show_design
    from largebatch.experiments.attribution.corners import plan_design
    from largebatch.experiments.attribution.matched_runs import make_matched_runs, require_same_attribution
    from largebatch.experiments.attribution.settings import AttributionConfig
    from largebatch.records.report.publish import show_result, write_result, write_result_page
    from largebatch.records.run_folder import environment
    from largebatch.run.config.reading import parse_config, parse_section, public_values

    options = parse_section(config, "attribute", AttributionConfig)
    folder, is_main = _folder(config), os.environ.get("RANK", "0") == "0"
    design = plan_design(config, options)
    require_same_attribution(folder, config, options)
    if is_main:
        show_design(design, options, folder)

    def on_run(corner: Corner, seed: int, value: float) -> None:
        if is_main:
            print(f"{corner.name}, seed {seed}: {options.metric} {value:.4g}", flush=True)

    with StopRequest() as stop:
        first = parse_config(config).seed
        ended = make_matched_runs(design, config, options, folder, first_seed=first, stop=stop, on_run=on_run)
        if ended is None:
            if is_main:
                print(f"stopped; the same command with run.dir={folder} continues")
            return code_of(stop.signal_name)
    if is_main:
        result = attribution_result(design, options, ended, first_seed=first, title=_title(config))
        about = {"config": public_values(config) | {"attribute": options.model_dump()}, "environment": environment()}
        path = folder / "attribution.json"
        show_result(result)
        write_result(result, path, about=about)
        write_result_page(folder, [path], title=result.heading)
    return EXIT_DONE


def _title(config: DictConfig) -> str:
    return str(config.run.name or config.run.title or config.data.name)


def _folder(config: DictConfig) -> Path:
    from largebatch.records.run_folder import new_folder
    from largebatch.run.config.reading import ConfigError

    if config.run.dir:
        return Path(config.run.dir)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(["run.dir: all processes work in one folder. Name it with run.dir=FOLDER."])
    return new_folder(config.run.root, "attribution")
