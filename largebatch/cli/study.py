"""`largebatch study`: measures steps and samples to a target against the batch size."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from largebatch.cli.composition.composing import compose_config, run_verb
from largebatch.cli.process.leaving import code_of

if TYPE_CHECKING:
    from largebatch.experiments.study.joint_scaling import Joint
    from largebatch.experiments.study.protocol import Cell, Row
    from largebatch.experiments.study.settings import StudyConfig

_SUBJECTS = {
    "analyze": "fit a table of steps to a target: `analyze FILE`",
    "atlas": "critical batch sizes of published systems, beside your own: `atlas [FILE...]`",
}


_ONE_PROCESS = (
    "a study is many runs of one process each. Start it without a launcher: with study.workers=N, or "
    "as a sweep over study.share (see largebatch study --help)."
)


def main(arguments: Sequence[str]) -> int:
    """`study [KEY=VALUE ...]`, `study analyze FILE`, or `study atlas [FILE...]`; returns the exit code."""
    if arguments and arguments[0] == "analyze":
        from largebatch.cli import study_analyze

        return study_analyze.main(arguments[1:])
    if arguments and arguments[0] == "atlas":
        from largebatch.cli import study_atlas

        return study_atlas.main(arguments[1:])
    if arguments and arguments[0].isidentifier():
        from largebatch.cli.composition.choices import list_choices

        return list_choices("study", _SUBJECTS, arguments)
    return run_verb("study", run, arguments, config_name="study")


def run(config: DictConfig, overrides: list[str]) -> int:
    """Make the runs that are still missing in the study's folder; once complete, fit and present them."""
    from largebatch.distributed.signals import StopRequest
    from largebatch.experiments.study.joint_scaling import jointly_scaled
    from largebatch.experiments.study.journal import Journal, require_same_study
    from largebatch.experiments.study.protocol import is_done
    from largebatch.experiments.study.settings import StudyConfig
    from largebatch.experiments.study.study_runs import identity_of, make_runs, plan_cells
    from largebatch.run.config.reading import ConfigError, parse_section, require_one_process
    from largebatch.run.config.targets import TargetError

    study = parse_section(config, "study", StudyConfig)
    require_one_process(os.environ, _ONE_PROCESS)
    folder = _folder(config, study)
    configs = {name: _config_of(name, overrides) for name in study.optimizers}
    joint: dict[str, Joint] = {}
    if study.joint_scaling:
        try:
            scaled = {name: jointly_scaled(one, study.ranges(name)) for name, one in configs.items()}
        except (ConfigError, TargetError):
            plan_cells(configs, study)  # says what is wrong at every point
            raise
        configs, joint = ({name: both[place] for name, both in scaled.items()} for place in (0, 1))  # type: ignore[assignment]
    cells = plan_cells(configs, study)
    usual = identity_of({name: _config_of(name, ()) for name in study.optimizers}, study)["optimizers"]
    require_same_study(folder, identity_of(configs, study), usual)
    for name, one in joint.items():
        print(f"{name}: {one}", flush=True)
    with Journal(folder, share=study.share, shares=study.shares) as journal, StopRequest() as stop:
        print(f"{len(cells)} points of {study.trials} trials and {study.seeds} runs each, into {folder}", flush=True)
        journal.rows()
        for line in journal.passed_over:  # its run is made again
            print(f"passed over: {line}", file=sys.stderr)
        make_runs(cells, configs, study, journal, stop=stop, on_row=_print_row)
        rows = journal.rows()
        if stop():
            print(f"stopped with {len(rows)} runs finished; the same command with run.dir={folder} continues")
            return code_of(stop.signal_name)
    if not is_done(cells, rows):
        print(f"this share is done; others are still at work in {folder}")
        return 0
    _conclude(config, study, folder, rows, cells, joint)
    return 0


def _config_of(optimizer: str, overrides: Sequence[str]) -> DictConfig:
    """The composed config with another choice of the group `optimizer`."""
    from omegaconf import open_dict

    config = compose_config([*overrides, f"optimizer={optimizer}"], config_name="study")
    with open_dict(config):
        del config["study"]
    return config


def _folder(config: DictConfig, study: StudyConfig) -> Path:
    from largebatch.records.run_folder import new_folder
    from largebatch.run.config.reading import ConfigError

    if config.run.dir:
        return Path(config.run.dir)
    if study.shares > 1:
        raise ConfigError([f"study.shares={study.shares}: all shares work in one folder. Name it with run.dir=FOLDER."])
    return new_folder(config.run.root, "study")


def _print_row(row: Row) -> None:
    setting = ", ".join(f"{key.rpartition('.')[2]}={value:.4g}" for key, value in row["setting"].items())
    run = f"{row['optimizer']}, batch {row['batch_size']:,}, {row['phase']} {row['number']}, seed {row['seed']}"
    print(f"{run} ({setting}): {row['status']} at step {row['steps']:,}, {row['seconds']:.1f} s", flush=True)


def _conclude(
    config: DictConfig,
    study: StudyConfig,
    folder: Path,
    rows: Sequence[Row],
    cells: Sequence[Cell],
    joint: Mapping[str, Joint],
) -> None:
    from largebatch.experiments.batch_costs import batch_costs
    from largebatch.experiments.study import analyse, study_record
    from largebatch.experiments.study.protocol import point_of
    from largebatch.experiments.study.study_result import present, study_result
    from largebatch.records.report.target_runs import runs_of_study
    from largebatch.run.config.reading import public_values

    target, name = study.target, config.run.name or config.run.title or config.data.name
    analysis = analyse([point_of(cell, rows) for cell in cells])
    costs = batch_costs(runs_of_study(study_record(analysis)["points"], folder, resolution=study.resolution))
    title = f"steps until {target.metric} is {target.direction} {target.value:g}, {name}"
    present(
        study_result(analysis, title=title, costs=costs),
        folder,
        config=public_values(config) | {"study": study.model_dump()},
        more={
            "target": target.model_dump() | {"direction": target.direction},
            "joint_scaling": {name: one.record() for name, one in joint.items()},
        },
    )
