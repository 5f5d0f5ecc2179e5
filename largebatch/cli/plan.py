"""`largebatch plan`: prints the plan of a run without a process group and without training."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from largebatch.cli.composition.composing import run_verb


def main(arguments: Sequence[str]) -> int:
    """Compose, check, print the plan; returns the exit code."""
    return run_verb("plan", run, arguments, joins=False)


def run(config: DictConfig, overrides: list[str]) -> int:
    """Print the plan for `launcher.num_processes` ranks, or for one."""
    import os

    from largebatch.distributed.launcher_environment import start_problems
    from largebatch.records.trackers import print_plan
    from largebatch.run.config.reading import ConfigError, parse_config
    from largebatch.run.plan_report import checkpoint_row, lr_rows, plan_rows, reduction_rows
    from largebatch.run.precision.decisions import decision_rows, gpu_row
    from largebatch.run.prepare import prepare

    ranks = parse_config(config).launcher.num_processes
    environ = dict(os.environ)
    if ranks is not None:
        environ |= {"WORLD_SIZE": str(ranks), "RANK": "0", "LOCAL_RANK": "0"}
        environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # as a launcher would; nothing connects to it
    if copies := start_problems(environ, num_processes=ranks):
        raise ConfigError(copies)  # alone: all other errors would be about another run
    prepared = prepare(config, environ, trains=False)
    numbers = prepared.numbers
    how = [*decision_rows(prepared.decisions)]
    if not prepared.decisions.device.is_gpu:
        how.append(gpu_row(prepared.decisions, prepared.model, numbers))
    reduction = reduction_rows(prepared.config, numbers.plan.world_size)
    row = checkpoint_row(prepared.config, prepared.model)
    print_plan([*how, *plan_rows(numbers, prepared.optimizer), *reduction, row])
    print_plan(lr_rows(numbers), title="learning rate at the step that starts after")
    for note in prepared.notes:
        print(note)
    return 0
