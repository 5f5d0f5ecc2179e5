"""The comparison behind `largebatch verify`, and its result."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from largebatch.experiments.verify.cases import Case, choose_cases
from largebatch.experiments.verify.causes import Cause, causes_in_advance, causes_of_doubt, causes_of_failure
from largebatch.experiments.verify.comparison import Bounds, Comparison
from largebatch.experiments.verify.probe import Probe
from largebatch.experiments.verify.ranks import run_cases, save_reference, start_ranks
from largebatch.experiments.verify.rounding import rounding_bounds
from largebatch.experiments.verify.trajectories import Trajectory, reference_trajectory
from largebatch.records.result import Result, Table
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.schema import VerifyConfig
from largebatch.run.prepare import Prepared

MOST_TENSORS = 12  # on the screen; the file has all


@dataclass(frozen=True)
class Outcome:
    """How far factorizations of a run are from the reference in plain torch.

    Attributes:
        causes: of a difference, with those that are known before any comparison.
        errors: of each factorization; empty if a cause is known in advance.
        bounds: of the errors that rounding explains.
    """

    causes: list[Cause]
    errors: dict[Case, Comparison]
    bounds: Bounds

    @property
    def failed(self) -> bool:
        """Whether the topology changes the run."""
        return bool(self.causes) or any(self.bounds.share(one) > 1 for one in self.errors.values())

    def result(self) -> Result:
        """The outcome as sentences, tables and numbers."""
        return Result(
            title="Verification",
            sentences=_sentences(self),
            tables=_tables(self.errors, self.bounds),
            figures=[],
            numbers=_numbers(self),
        )


def compare_factorizations(config: DictConfig, prepared: Prepared, options: VerifyConfig) -> Outcome:
    """Compare factorizations of a composed run with a reference in plain torch; every rank of a launcher calls it.

    Raises:
        ConfigError: if the run cannot be compared.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    size = prepared.numbers.plan.global_batch_size
    limits = {"micro": prepared.config.batch.micro, "max_micro": prepared.config.batch.max_micro}
    world_sizes = [launched] if launched > 1 else options.world_sizes
    try:
        cases = choose_cases(global_batch_size=size, world_sizes=world_sizes, **limits)
        (whole, *_) = choose_cases(global_batch_size=size, world_sizes=[1], **limits)
        if prepared.config.batch_norm == "exact":
            (whole, *_) = choose_cases(global_batch_size=size, world_sizes=[1], micro=None, max_micro=None)
    except ValueError as error:
        raise ConfigError([f"verify.world_sizes={world_sizes}: {error}"]) from None
    if prepared.config.batch_norm == "exact" and Probe(prepared).draws():
        raise ConfigError(
            ["batch_norm=exact: the reference is one big batch, whose random draws are not those of micro-"
             "batches. Verify without dropout; the draws of a micro-batch do not depend on the ranks."]
        )  # fmt: skip
    reference = reference_trajectory(prepared, whole.plan, num_steps=options.steps)
    causes = causes_in_advance(prepared)
    if causes:
        return Outcome(causes, {}, Bounds({}, {}))
    if options.tolerance is None:
        bounds = rounding_bounds(prepared, whole.plan, reference, num_steps=options.steps)
    else:
        bounds = Bounds.fixed(options.tolerance, reference)
    causes, errors = _run_all(config, prepared, cases, reference, options)
    causes += causes_of_doubt(prepared, bounds)
    if any(bounds.share(one) > 1 for one in errors.values()):
        causes += causes_of_failure(prepared, errors, bounds)
    return Outcome(causes, errors, bounds)


def _run_all(
    config: DictConfig, prepared: Prepared, cases: list[Case], reference: Trajectory, options: VerifyConfig
) -> tuple[list[Cause], dict[Case, Comparison]]:
    """All cases of one number of ranks at a time: here, in processes of our own, or in those of a launcher."""
    causes: list[Cause] = []
    errors: dict[Case, Comparison] = {}
    plain: Any = OmegaConf.to_container(config, resolve=False)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    with tempfile.TemporaryDirectory(prefix="largebatch-verify-") as folder:
        save_reference(reference, folder)
        for world_size in dict.fromkeys(case.world_size for case in cases):
            plans = [case.plan for case in cases if case.world_size == world_size]
            if world_size in (1, launched):
                found, measured = run_cases(prepared, plans, reference, options.steps)
            else:
                found, measured = start_ranks(world_size, plain, plans, folder, options.steps)
            errors |= measured
            causes += [cause for cause in found if cause not in causes]
            if found:
                break
    return causes, errors


def _tables(errors: dict[Case, Comparison], bounds: Bounds) -> list[Table]:
    with_statistics = bool(bounds.statistics)
    rows = [
        (case.name, f"{one.gradient_error:.1e}", f"{one.weights_error:.1e}",
         *([f"{one.statistics_error:.1e}"] if with_statistics else []),
         f"{bounds.share(one):.2g}", "same" if bounds.share(one) <= 1 else "DIFFERENT")
        for case, one in errors.items()
    ]  # fmt: skip
    statistics = ["batch norm"] if with_statistics else []
    headers = ("ranks: micro-batches", "gradient", "weights", *statistics, "of its bound", "")
    worst = _worst(errors)
    shown = sorted(worst, key=lambda name: -max(worst[name]))[:MOST_TENSORS]
    tensors = [
        (name, *(f"{error:.1e}" for error in worst[name]),
         f"{bounds.weights[name]:.1e}" if name in bounds.weights else "rounding decides")
        for name in shown
    ]  # fmt: skip
    title = f"per parameter tensor, over all of them; the largest {len(shown)} of {len(worst)}"
    tables = [
        Table("largest relative error", headers, rows),
        Table(title, ("parameter", "gradient", "weights", "bound of weights"), tensors),
    ]
    return [table for table in tables if table.rows]


def _sentences(outcome: Outcome) -> list[str]:
    errors, bounds = outcome.errors, outcome.bounds
    largest = max((bounds.share(one) for one in errors.values()), default=0.0)
    of_bound = f": the largest error is {largest:.2g} of its bound" if errors else ""
    sentences = [f"{'DIFFERENT' if outcome.failed else 'same'}{of_bound}."]
    sentences += [f"cause: {cause.name}: {cause.text}" for cause in outcome.causes]
    if outcome.failed and not outcome.causes:
        gradients_agree = all(bounds.gradient_share(one) <= 1 for one in errors.values())
        where = "The first gradients agree: look at later steps, such as a rank's own state, the optimizer or the data."
        remedy = where if gradients_agree else "Look at the code behind the tensors with the largest errors."
        sentences.append(f"cause: not found. {remedy}")
    if bounds.undecided:
        sentences.append(
            f"{len(bounds.undecided)} of {len(bounds.gradient)} tensors are compared by their gradients alone. "
            f"Rounding decides their weights even in one process: {', '.join(bounds.undecided[:MOST_TENSORS])}."
        )
    return sentences


def _numbers(outcome: Outcome) -> dict[str, Any]:
    return {
        "same": not outcome.failed,
        "bounds": asdict(outcome.bounds),
        "causes": [{"name": cause.name, "text": cause.text} for cause in outcome.causes],
        "cases": [
            {"name": case.name, "world_size": case.world_size, "micro_batch_sizes": list(case.plan.micro_batch_sizes),
             **asdict(one)}
            for case, one in outcome.errors.items()
        ],
    }  # fmt: skip


def _worst(errors: dict[Case, Comparison]) -> dict[str, tuple[float, float]]:
    """Largest error of gradient and weights over all cases, by parameter."""
    worst: dict[str, tuple[float, float]] = {}
    for one in errors.values():
        for name, weight_error in one.weights.items():
            gradient, weights = worst.get(name, (0.0, 0.0))
            worst[name] = (max(gradient, one.gradient.get(name, 0.0)), max(weights, weight_error))
    return worst
