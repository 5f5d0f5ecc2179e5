"""The candidates of `largebatch advise`, held against the plan before any run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from largebatch.run.config.findings import Findings
from largebatch.run.derive import solve_plan
from largebatch.run.prepare import Prepared


def require_splits(prepared: Prepared, sizes: Sequence[int]) -> None:
    """Refuse candidates that these ranks cannot split, or that exceed the samples of a run.

    Raises:
        ConfigError: with all of them.
    """
    findings, world_size = Findings(), prepared.numbers.plan.world_size
    for size in sizes:
        findings.attempt(f"advise.batch_sizes: {size}", partial(solve_plan, prepared.config, size, world_size))
        if size > prepared.numbers.num_consumed:
            findings.errors.append(
                f"advise.batch_sizes: {size} exceeds the {prepared.numbers.num_consumed:,} samples of a run. Raise "
                "length, or use smaller ones."
            )
    findings.raise_if_any()
