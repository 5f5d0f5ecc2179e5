"""The rates of convergence of batch, stochastic and mini-batch gradient descent on a strongly convex problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import scipy
from pydantic import Field

from largebatch.diagnostics.intervals import LEAST_SEEDS
from largebatch.diagnostics.settings import PositiveInt, Section
from largebatch.experiments.textbook.convergence_runs import Descent, FullBatch, descend, descend_full_batch
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.quadratic_task import quadratic_task
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.result import Result, Table
from largebatch.run.config.reading import ConfigError

_CAPTION = "Measured: where the mean loss over seeds gets there. Theory: where the expected loss does."


class Settings(Section):
    """See conf/experiment/textbook/convergence.yaml."""

    targets: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=2)]
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=2)]
    seeds: Annotated[int, Field(ge=LEAST_SEEDS)]  # fewer do not tell their own error
    full_batch_steps: Annotated[int, Field(ge=2)]


def run(experiment: Experiment, settings: Settings) -> Result:
    """Train to every target at every batch size, and on all samples."""
    task, start = quadratic_task(experiment)
    if errors := _problems(settings, int(experiment.config.data.train.num_samples)):
        raise ConfigError(errors)
    full = descend_full_batch(experiment, task, start, num_steps=settings.full_batch_steps)
    aims = [
        (total, target) for total in sorted(settings.batch_sizes) for target in sorted(settings.targets, reverse=True)
    ]
    descents = []
    for number, (total, target) in enumerate(aims):
        seeds = range(number * settings.seeds, (number + 1) * settings.seeds)
        descents.append(descend(experiment, task, start, target=target, total=total, seeds=seeds))
    return Result(
        title="Rates of convergence",
        question="How does the number of steps grow with the precision asked for, and fall with the batch size?",
        sentences=_sentences(full, descents),
        tables=(_table(descents),),
        figures=(_full_diagram(full), _over_targets(descents), _over_batches(descents)),
        numbers=_numbers(full, descents),
    )


def _problems(settings: Settings, num_samples: int) -> list[str]:
    return [
        f"textbook.batch_sizes={size}: the set has {num_samples} samples, and a batch of all has no noise. Use less."
        for size in settings.batch_sizes
        if size >= num_samples
    ]


def power(x: list[float], y: list[float]) -> float:
    """Slope of the least-squares line through log y over log x.

    >>> round(power([1.0, 2.0, 4.0], [3.0, 1.5, 0.75]), 12)
    -1.0
    """
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _full_diagram(full: FullBatch) -> Diagram:
    steps = list(range(len(full.losses)))
    lines = (
        Line("measured", steps, full.losses.tolist(), style="points"),
        Line("theory", steps, full.exact.tolist(), style="dashed"),
    )
    title = f"Batch gradient descent, rate {full.lr:.3g}: log(1/eps) steps"
    return Diagram("batch_gradient_descent", title, Axis("steps"), Axis("loss", log=True), lines)


def _over_targets(descents: list[Descent]) -> Diagram:
    lines: list[Line] = []
    for total in dict.fromkeys(one.total for one in descents):
        mine = [one for one in descents if one.total == total]
        lines += _beside_theory(f"B = {total}", [one.target for one in mine], mine)
    x, y = Axis("eps, share of the first loss", log=True), Axis("steps", log=True)
    return Diagram("steps_over_target", "Steps to eps of the first loss", x, y, tuple(lines), _CAPTION)


def _beside_theory(label: str, places: Sequence[float], descents: Sequence[Descent]) -> list[Line]:
    return [
        Line(f"{label}, measured", places, [one.measured for one in descents], style="points"),
        Line(f"{label}, theory", places, [one.expected for one in descents], style="dashed"),
    ]


def _over_batches(descents: list[Descent]) -> Diagram:
    lines: list[Line] = []
    for target in dict.fromkeys(one.target for one in descents):
        mine = [one for one in descents if one.target == target]
        lines += _beside_theory(f"eps = {target:g}", [one.total for one in mine], mine)
    x, y = Axis("batch size", "samples", log=True), Axis("steps", log=True)
    return Diagram("steps_over_batch_size", "Steps to eps of the first loss", x, y, tuple(lines), _CAPTION)


def _table(descents: list[Descent]) -> Table:
    rows = [
        (
            f"{one.total:,}", f"{one.target:g}", f"{one.lr:.3g}", f"{one.expected:,}",
            "not reached" if one.measured is None else f"{one.measured:,}",
            f"{one.expected_loss:.3g}", f"{one.loss[0]:.3g}", f"{one.loss[1]:.3g} to {one.loss[2]:.3g}",
        )
        for one in descents
    ]  # fmt: skip
    headers = ("batch", "eps", "rate", "steps, theory", "measured", "loss there, theory", "measured", "95 % interval")
    return Table("steps to eps of the first loss, at the rate that needs the fewest", headers, rows)


def _powers(descents: list[Descent]) -> dict[str, dict[str, float]]:
    """How steps grow with eps at the smallest batch, and fall with the batch at the smallest eps."""
    smallest, least = min(one.total for one in descents), min(one.target for one in descents)
    powers = {}
    for name, mine, x in (
        ("of_target", [one for one in descents if one.total == smallest], "target"),
        ("of_batch_size", [one for one in descents if one.target == least], "total"),
    ):
        places = [float(getattr(one, x)) for one in mine if one.measured]
        measured = [float(one.measured) for one in mine if one.measured]
        powers[name] = {
            "measured": power(places, measured) if len(places) > 1 else float("nan"),
            "theory": power([float(getattr(one, x)) for one in mine], [float(one.expected) for one in mine]),
        }
    return powers


def _sentences(full: FullBatch, descents: list[Descent]) -> list[str]:
    powers = _powers(descents)
    of_target, of_batch = powers["of_target"], powers["of_batch_size"]
    smallest, largest = min(one.total for one in descents), max(one.total for one in descents)
    least = min(one.target for one in descents)
    share = (full.losses[-1] / full.losses[0]) ** (1 / (len(full.losses) - 1))
    known = (full.exact[-1] / full.exact[0]) ** (1 / (len(full.exact) - 1))
    agreeing, count = sum(one.agrees for one in descents), len(descents)
    by_chance = agreeing >= scipy.stats.binom.ppf(0.01, count, 0.95)
    return [
        f"Steps grow with log(1/eps) on all samples: each step leaves {share:.4f} of the loss, by theory {known:.4f}.",
        f"With batches of {smallest} they grow like eps to the power {of_target['measured']:.2f}, by theory "
        f"{of_target['theory']:.2f}. A power of -1 is the rate sigma^2/eps; its logarithm makes the rest.",
        f"To eps = {least:g} they fall from batch {smallest} to {largest} like B to the power "
        f"{of_batch['measured']:.2f}, by theory {of_batch['theory']:.2f}. A power of -1 is sigma^2/(B eps); it ends "
        "where the rate reaches its limit and log(1/eps) takes over.",
        f"Theory holds in {agreeing} of {count} cases: after the predicted number of steps, the expected loss lies in "
        f"the 95 % interval of the measured one.{'' if by_chance else ' That is fewer than chance explains.'}",
    ]


def _numbers(full: FullBatch, descents: list[Descent]) -> dict[str, Any]:
    return {
        "full_batch": {
            "lr": full.lr,
            "losses": full.losses,
            "deviation_from_closed_form": float(np.abs(full.losses - full.exact).max()),
        },
        "powers": _powers(descents),
        "descents": [
            {
                "target": one.target,
                "global_batch_size": one.total,
                "lr": one.lr,
                "expected_steps": one.expected,
                "expected_loss": one.expected_loss,
                "measured_steps": one.measured,
                "loss_after_expected_steps": dict(zip(("value", "low", "high"), one.loss, strict=True)),
            }
            for one in descents
        ],
    }
