"""`largebatch plan --advise`: how large the batch should be and what it costs, from runs that were made."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from largebatch.cli.composition.flags import overrides_and_flags
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_IN_PART
from largebatch.records.regular_files import printable

if TYPE_CHECKING:
    from largebatch.experiments.advice.answer import Advice
    from largebatch.experiments.advice.planned import Planned, PlannedMemory
    from largebatch.records.report.evidence import Evidence
    from largebatch.run.config.plan import PlanConfig
    from largebatch.run.predicted_memory.prediction import PredictedMemory
    from largebatch.run.prepare import Prepared


def print_advice(
    prepared: Prepared,
    options: PlanConfig,
    overrides: Sequence[str],
    *,
    record: dict[str, Any] | None,
    memory: PredictedMemory | str | None,
) -> int:
    """Print chart, table, sources and the three sentences, or all of it as JSON; draw the picture.

    Args:
        prepared: the planned run.
        options: the section `plan`.
        overrides: as typed.
        record: the plan as plain values, which the advice is added to; None: texts are printed.
        memory: predicted, or why it is not; None: it was not asked for.

    Returns:
        0; 3 if a folder could not be read, or a run is damaged: stderr names it.
    """
    from largebatch.experiments.advice.answer import advise

    require_advisable(prepared, options.batch_sizes, key="plan.batch_sizes")
    evidence = read_measured(options.measured)
    planned = planned_of(prepared, overrides, section="plan", memory=_planned_memory(memory))
    advice = advise(evidence, planned, options.batch_sizes)
    if record is not None:
        from largebatch.records.json_values import json_values

        print(json.dumps(json_values(record | {"advice": advice.record()}), indent=1))
    else:
        show_advice(advice)
    if options.picture is not None:
        _draw(advice, options.picture)
    for one in (*evidence.left_out, *evidence.damaged):
        print(f"left out or damaged: {printable(one.path)}: {printable(one.reason)}", file=sys.stderr)
    for one in advice.found.evidence.left_out[len(evidence.left_out) :]:
        print(f"no evidence here: {printable(one.path)}: {printable(one.reason)}", file=sys.stderr)
    return EXIT_IN_PART if evidence.left_out or evidence.damaged else EXIT_DONE


def show_advice(advice: Advice) -> None:
    """Print chart, table, sources, and the answer last."""
    from largebatch.records.trackers import print_table

    print("\n".join(advice.tree()), end="\n\n")
    table = advice.table()
    print_table(table.headers, table.rows, title=table.title)
    print("\n".join(advice.text()))


def require_advisable(prepared: Prepared, sizes: Sequence[int] | None, *, key: str) -> None:
    """Refuse a run or candidates that there is no advice about.

    Raises:
        ConfigError: for a batch that changes, or candidates that do not fit the set.
    """
    from largebatch.run.config.reading import ConfigError

    errors, num_samples = [], prepared.numbers.num_samples
    if len(prepared.numbers.ramp.plans) > 1:
        errors.append("batch.ramp: advice is about one batch size. Leave batch.ramp out.")
    if large := [size for size in sizes or () if size > num_samples]:
        errors.append(f"{key}: {large} exceed the training set of {num_samples:,} samples. Use smaller ones.")
    if errors:
        raise ConfigError(errors)


def planned_of(
    prepared: Prepared, overrides: Sequence[str], *, section: str, memory: PlannedMemory | None = None, folder: str = ""
) -> Planned:
    """The planned run as advice takes it; the overrides of the verb's own section are no settings of the run."""
    from largebatch.experiments.advice.planned import Planned
    from largebatch.records.flat_config import flat

    numbers = prepared.numbers
    _, flags = overrides_and_flags(sys.argv[1:])
    return Planned(
        settings={key: str(value) for key, value in flat(prepared.public).items()},
        batch=numbers.plan.global_batch_size,
        num_samples=numbers.num_samples,
        world_size=numbers.plan.world_size,
        max_micro=numbers.plan.max_micro_batch_size,
        peak_lr=numbers.peak_lrs[0].value,
        overrides=[one for one in overrides if not one.lstrip("+").startswith((f"{section}.", "run.dir="))],
        flags=flags,
        memory=memory,
        cost=prepared.config.cost if any(prepared.config.cost.model_dump().values()) else None,
        folder=folder,
    )


def read_measured(folders: Sequence[str]) -> Evidence:
    """What the folders hold.

    Raises:
        ConfigError: if folders were named, and nothing in them can be used.
    """
    from largebatch.records.report.evidence import Evidence
    from largebatch.records.report.reading import read_evidence
    from largebatch.run.config.reading import ConfigError

    if not folders:
        return Evidence(())
    found = read_evidence(folders)
    if not found:
        why = [f"plan.measured: {printable(one.path)}: {printable(one.reason)}" for one in found.left_out]
        raise ConfigError([*why, "plan.measured: nothing can be used. Name folders of runs, or leave it out."])
    return found


def _planned_memory(found: PredictedMemory | str | None) -> PlannedMemory | None:
    from largebatch.experiments.advice.planned import PlannedMemory
    from largebatch.run.predicted_memory.prediction import FRAGMENTED, OUTSIDE_BYTES

    if found is None:
        return None
    if isinstance(found, str):
        print(f"memory: not predicted. {found}", file=sys.stderr)
        return None
    return PlannedMemory(
        device=found.device,
        micro_batch_size=found.micro_batch_size,
        peak=found.step.peak,
        per_sample=found.per_sample,
        outside=(OUTSIDE_BYTES, FRAGMENTED) if found.device == "cuda" else None,
        fits=None if found.fit is None else found.fit.size,
        budget=None if found.fit is None else found.fit.budget,
    )


def _draw(advice: Advice, path: str) -> None:
    """Draw the picture; without evidence for one say so."""
    from largebatch.records.figures.draw_png import draw_panels

    result = advice.result()
    if not result.figures:
        print("no picture: nothing of it is known", file=sys.stderr)
        return
    print(draw_panels(list(result.figures), path, title=result.heading), file=sys.stderr)
