"""`largebatch plan`: prints the plan of a run without a process group and without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from largebatch.cli.composition.advice_flags import with_overrides
from largebatch.cli.composition.composing import run_verb
from largebatch.cli.process.refusing import refuse

if TYPE_CHECKING:
    from largebatch.run.config.plan import PlanConfig
    from largebatch.run.predicted_memory.prediction import PredictedMemory
    from largebatch.run.prepare import Prepared


def main(arguments: Sequence[str]) -> int:
    """Compose, check, print the plan; returns the exit code."""
    try:
        given = with_overrides(arguments)
    except ValueError as error:
        return refuse(str(error))
    return run_verb("plan", run, given, config_name="plan", joins=False)


def run(config: DictConfig, overrides: list[str]) -> int:
    """Print the plan for `launcher.num_processes` ranks, or for one; with plan.advise advice on its batch."""
    prepared, options = prepare_plan(config)
    if options.advise:
        from largebatch.cli.plan_advice import print_advice

        record = record_of(prepared, options) if options.format == "json" else None
        memory = predicted_memory(prepared, options) if options.memory else None
        return print_advice(prepared, options, overrides, record=record, memory=memory)
    if options.format == "json":
        import json

        print(json.dumps(record_of(prepared, options), indent=1))
    else:
        _print_tables(prepared, options)
    return 0


def prepare_plan(config: DictConfig) -> tuple[Prepared, PlanConfig]:
    """The run that a config of this verb plans, prepared for its ranks, and the section `plan`."""
    import os

    from largebatch.distributed.launcher_environment import start_problems
    from largebatch.run.config.plan import PlanConfig
    from largebatch.run.config.reading import ConfigError, parse_config, parse_section
    from largebatch.run.prepare import prepare

    options = parse_section(config, "plan", PlanConfig)
    ranks = parse_config(config).launcher.num_processes
    environ = dict(os.environ)
    if ranks is not None:
        environ |= {"WORLD_SIZE": str(ranks), "RANK": "0", "LOCAL_RANK": "0"}
        environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # as a launcher would; nothing connects to it
    if copies := start_problems(environ, num_processes=ranks):
        raise ConfigError(copies)  # alone: all other errors would be about another run
    return prepare(config, environ, trains=False, tries=options.dry_run), options


def record_of(prepared: Prepared, options: PlanConfig) -> dict[str, Any]:
    """What is printed with `plan.format=json`: plain values, as plan.json has them."""
    from largebatch.run.plan_report import plan_record

    record = plan_record(prepared)
    if options.memory:
        from largebatch.run.predicted_memory.report import memory_record

        predicted = predicted_memory(prepared, options)
        record["memory"] = {"not_predicted": predicted} if isinstance(predicted, str) else memory_record(predicted)
    return record


def _print_tables(prepared: Prepared, options: PlanConfig) -> None:
    from largebatch.records.trackers import print_plan
    from largebatch.run.loading import prefetch_rows
    from largebatch.run.method_rows import method_rows
    from largebatch.run.plan_report import checkpoint_row, lr_rows, plan_rows, reduction_rows
    from largebatch.run.precision.decisions import decision_rows, gpu_row
    from largebatch.run.utilisation import utilisation_of

    numbers = prepared.numbers
    how = [*decision_rows(prepared.decisions), *prefetch_rows(prepared)]
    if not prepared.decisions.device.is_gpu:
        how.append(gpu_row(prepared.decisions, prepared.model, numbers))
    if (utilisation := utilisation_of(prepared)).row is not None:
        how.append(utilisation.row)
    reduction = reduction_rows(prepared.config, numbers.plan.world_size)
    row = checkpoint_row(prepared.config, prepared.model)
    print_plan([*how, *plan_rows(numbers, prepared.optimizer), *method_rows(prepared), *reduction, row])
    print_plan(lr_rows(numbers), title="learning rate at the step that starts after")
    if options.memory:
        predicted = predicted_memory(prepared, options)
        if isinstance(predicted, str):
            print(f"memory: not predicted. {predicted}")
        else:
            from largebatch.run.predicted_memory.report import memory_rows

            print_plan(memory_rows(predicted), title=f"memory of a rank, predicted for {options.device}")
    for note in prepared.notes:
        print(note)


def predicted_memory(prepared: Prepared, options: PlanConfig) -> PredictedMemory | str:
    """The prediction, or why there is none."""
    from largebatch.run.predicted_memory.prediction import NotPredictableError, predict_memory

    budget = None if isinstance(options.memory, bool) else options.memory
    try:
        return predict_memory(prepared, options.device, budget=budget)
    except NotPredictableError as error:
        return str(error)
