"""k times the batch at k times the rate: one step against k steps, and whole runs against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from largebatch.batch.scaling import scale_lr
from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section
from largebatch.experiments.textbook.bands import band_of_mean, seeds_text
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.one_step import detour_figure, detour_sentence, measure_detour
from largebatch.experiments.textbook.outcomes import Outcome, finals, train_seeds
from largebatch.experiments.textbook.weight_path import Float64Array
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.result import Result, Table

_RATES = {"linear": "k eta", "sqrt": "sqrt(k) eta", "none": "eta"}
_LOSS, _ACCURACY, _LAMBDA = "eval/train_loss", "eval/val_accuracy", "sharpness/lambda_max"


class Settings(Section):
    """See conf/experiment/textbook/linear_scaling.yaml."""

    factors: Annotated[list[PositiveInt], Field(min_length=3)]
    beside: list[Literal["sqrt", "none"]]
    seeds: PositiveInt
    tolerance: PositiveFloat
    after_steps: list[Annotated[int, Field(ge=0)]]

    @field_validator("factors")
    @classmethod
    def _from_one(cls, value: list[int]) -> list[int]:
        if value[0] != 1 or value != sorted(set(value)):
            raise ValueError(
                "values must rise from 1, with which the others are compared. Put 1 first, and sort the rest."
            )
        return value


@dataclass(frozen=True)
class Rule:
    """Whole runs of equal epochs under one scaling rule, one outcome per factor."""

    name: str
    factors: list[int]
    lrs: list[float]
    outcomes: list[Outcome]

    def excess(self, base: Outcome) -> Float64Array:
        """Geometric mean over seeds of training loss / training loss of `base` with the same seed, - 1; [k]."""
        ratios = finals(self.outcomes, _LOSS) / base.final(_LOSS)[:, None]
        return np.exp(np.log(ratios).mean(axis=0)) - 1


def run(experiment: Experiment, settings: Settings) -> Result:
    """Steps against steps, then runs against runs."""
    above_one = settings.factors[1:]
    detours = [
        measure_detour(experiment, above_one, after_steps=after, num_seeds=settings.seeds)
        for after in settings.after_steps
    ]
    rules = [_rule(experiment, settings, name) for name in ("linear", *settings.beside)]
    linear = rules[0]
    return Result(
        title="The linear scaling rule",
        question="Does one step of k times the batch and rate replace k steps, and up to which k?",
        sentences=[*_about_runs(linear, rules[1:], settings), *(detour_sentence(detour) for detour in detours)],
        tables=(_table(experiment, rules, settings),),
        figures=(detour_figure(detours), _final_figure(experiment, rules, linear), _curves(linear, settings),
                 _sharpness_figure(linear)),
        numbers={
            "steps": {f"after_{one.after_steps}": {"factors": one.factors, "distances": one.distances,
                                                  "slope": one.slope} for one in detours},
            "runs": {rule.name: _numbers(rule, linear.outcomes[0]) for rule in rules},
            "holds_up_to": _holds_up_to(linear, settings),
            "predicted_limit": float(np.exp(np.log(_predicted_limits(linear)).mean())),
        },
    )  # fmt: skip


def _rule(experiment: Experiment, settings: Settings, name: str) -> Rule:
    base = experiment.config.scaling
    factors = settings.factors if name == "linear" else settings.factors[1:]  # at k = 1 all rules are one
    sizes = [k * base.base_batch_size for k in factors]
    lrs = [
        scale_lr(base.base_lr, base_batch_size=base.base_batch_size, global_batch_size=size, rule=name).value
        for size in sizes
    ]
    outcomes = [
        train_seeds(
            experiment, f"{name}-k{k}", f"scaling.rule={name}", f"batch.total={size}", seeds=range(settings.seeds)
        )
        for k, size in zip(factors, sizes, strict=True)
    ]
    return Rule(name, factors, lrs, outcomes)


def _holds_up_to(linear: Rule, settings: Settings) -> int:
    """The largest k up to which the training loss stays within the tolerance of the loss at k = 1."""
    holds = 1
    for k, excess in zip(linear.factors, linear.excess(linear.outcomes[0]), strict=True):
        if not abs(excess) <= settings.tolerance:
            break
        holds = k
    return holds


def _predicted_limits(linear: Rule) -> Float64Array:
    """The k at which k eta is 2 / lambda_max of the weights that k = 1 ends at, [seeds]."""
    return np.asarray(2 / linear.outcomes[0].final(_LAMBDA) / linear.lrs[0])


def _final_figure(experiment: Experiment, rules: Sequence[Rule], linear: Rule) -> Diagram:
    lines = [
        Line(_RATES[rule.name], rule.factors, *band_of_mean(finals(rule.outcomes, _LOSS), of_logarithms=True),
             style="both")
        for rule in rules
    ]  # fmt: skip
    single = float(np.exp(np.log(linear.outcomes[0].final(_LOSS)).mean()))
    lines.append(Line("k = 1", [1, linear.factors[-1]], [single, single], style="dashed"))
    return Diagram(
        "loss_over_k", f"Training loss after {experiment.config.length}", Axis("k: batch over base batch", log=True),
        Axis("training loss", log=True), tuple(lines), "Bands: 95 % of the geometric mean over seeds.",
    )  # fmt: skip


def _curves(linear: Rule, settings: Settings) -> Diagram:
    holds = linear.factors.index(_holds_up_to(linear, settings))
    shown = sorted({0, holds, min(holds + 1, len(linear.factors) - 1), len(linear.factors) - 1})
    lines = []
    for number in shown:
        samples, values = linear.outcomes[number].curve(_LOSS)
        label = f"k = {linear.factors[number]}, rate {linear.lrs[number]:g}"
        lines.append(Line(label, samples.tolist(), *band_of_mean(values, of_logarithms=True)))
    return Diagram(
        "loss_over_samples", "The same curve over samples, as long as the rule holds", Axis("samples seen"),
        Axis("training loss", log=True), tuple(lines), "Bands: 95 % of the geometric mean over seeds.",
    )  # fmt: skip


def _sharpness_figure(linear: Rule) -> Diagram:
    band = band_of_mean(finals(linear.outcomes, _LAMBDA), of_logarithms=True)
    limit = [2 / lr for lr in linear.lrs]
    return Diagram(
        "lambda_max", "The largest curvature at the end, and the limit of stable steps", Axis("k", log=True),
        Axis("lambda_max", log=True),
        (Line("lambda_max", linear.factors, *band, style="both"),
         Line("2 / (k eta)", linear.factors, limit, style="dashed")),
        "Above 2 / rate, gradient descent on a quadratic moves away along the steepest direction.",
    )  # fmt: skip


def _table(experiment: Experiment, rules: Sequence[Rule], settings: Settings) -> Table:
    linear, base = rules[0], rules[0].outcomes[0]
    headers = ("k", "batch", "k eta", "rate x lambda_max / 2", "training loss", "against k = 1", "validation accuracy",
               *(f"loss with {_RATES[rule.name]}" for rule in rules[1:]))  # fmt: skip
    lambdas, losses = finals(linear.outcomes, _LAMBDA).mean(axis=0), finals(linear.outcomes, _LOSS)
    accuracies, excess = finals(linear.outcomes, _ACCURACY).mean(axis=0), linear.excess(base)
    rows = []
    for number, k in enumerate(linear.factors):
        others = [
            f"{np.exp(np.log(rule.outcomes[number - 1].final(_LOSS)).mean()):.3g}" if number else ""
            for rule in rules[1:]
        ]
        rows.append(
            (
                f"{k}", f"{k * experiment.config.scaling.base_batch_size:,}", f"{linear.lrs[number]:g}",
                f"{linear.lrs[number] * lambdas[number] / 2:.2f}", f"{np.exp(np.log(losses[:, number]).mean()):.3g}",
                _percent(excess[number]), f"{accuracies[number]:.4f}", *others,
            )
        )  # fmt: skip
    title = f"{experiment.config.length}, {settings.seeds} seeds; losses are geometric means"
    return Table(title, headers, rows)


def _about_runs(linear: Rule, others: Sequence[Rule], settings: Settings) -> list[str]:
    holds = _holds_up_to(linear, settings)
    seeds = len(linear.outcomes[0].rows)
    by = f"in the mean of {seeds} seeds" if seeds > 1 else "for one seed, which cannot tell that from luck"
    sentences = [f"The rule holds up to k = {holds} over whole runs: the training loss stays within "
                 f"{settings.tolerance:.0%} of the loss at k = 1, {by}."]  # fmt: skip
    if holds < linear.factors[-1]:
        breaks = linear.factors.index(holds) + 1
        sentences.append(
            f"At k = {linear.factors[breaks]} the loss is {_excess(linear, linear.outcomes[0], breaks)} against k = 1."
        )
        sentences.append(f"{_about_limit(_predicted_limits(linear), holds, linear.factors[breaks])}.")
    for rule in others:
        at = rule.factors.index(holds) if holds in rule.factors else 0
        worse = _excess(rule, linear.outcomes[0], at)
        sentences.append(f"With rate {_RATES[rule.name]} the loss at k = {rule.factors[at]} is {worse} against k = 1.")
    return sentences


def _about_limit(limits: Float64Array, holds: int, breaks: int) -> str:
    """Whether the rule breaks, at `holds` < k <= `breaks`, where lambda_max of the small-batch minimum predicts it."""
    (value,), low, high = band_of_mean(limits[:, None], of_logarithms=True)
    where = f"By 2 / lambda_max of the minimum that k = 1 finds, k eta becomes unstable at k = {value:.0f}"
    if low is None or high is None or not np.isfinite([low[0], high[0]]).all():
        return f"{where}; {seeds_text(len(limits))} cannot tell whether that is the same k"
    where += f" (95 %: {low[0]:.3g} to {high[0]:.3g})"
    if holds < low[0] and high[0] <= breaks:
        return f"{where}: that agrees"
    if high[0] <= holds or low[0] > breaks:
        return f"{where}: that does not agree"
    return f"{where}: the seeds do not tell whether that is the same k"


def _excess(rule: Rule, base: Outcome, place: int) -> str:
    """The excess loss at one k as text, with its interval over seeds."""
    ratios = finals(rule.outcomes, _LOSS)[:, place] / base.final(_LOSS)
    (value,), low, high = band_of_mean(ratios[:, None], of_logarithms=True)
    text = _percent(value - 1)
    if low is None or high is None or not np.isfinite([low[0], high[0]]).all():
        return text
    return f"{text} (95 %: {_percent(low[0] - 1)} to {_percent(high[0] - 1)})"


def _percent(excess: float) -> str:
    return f"{excess:+.0%}" if np.isfinite(excess) else "not finite"


def _numbers(rule: Rule, base: Outcome) -> dict[str, Any]:
    return {"factors": rule.factors, "lrs": rule.lrs, "excess": rule.excess(base)} | {
        key: finals(rule.outcomes, key) for key in (_LOSS, _ACCURACY, _LAMBDA)
    }
