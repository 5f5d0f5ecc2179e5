"""Sharpness at the end of a run, and its gap, against the batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from largebatch.diagnostics.intervals import LEAST_SEEDS
from largebatch.diagnostics.settings import PositiveInt, Section
from largebatch.experiments.textbook.bands import band_of_mean, seeds_text
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.outcomes import Outcome, finals, rising, train_seeds
from largebatch.experiments.textbook.weight_path import Float64Array
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.result import Result, Table

_TRAIN, _ACCURACY, _GAP = "eval/train_loss", "eval/val_accuracy", "gap/loss"
_LAMBDA, _M_SHARPNESS = "sharpness/lambda_max", "sharpness/m_sharpness"


class Settings(Section):
    """See conf/experiment/textbook/noise_and_minima.yaml."""

    batch_sizes: Annotated[list[PositiveInt], Field(min_length=2), AfterValidator(rising)]
    seeds: PositiveInt


@dataclass(frozen=True)
class Series:
    """Runs over batch sizes of one length: `equal epochs` or `equal steps`."""

    name: str
    batch_sizes: list[int]
    outcomes: list[Outcome]

    def change(self, key: str, *, of_logarithms: bool) -> tuple[float, float, float] | None:
        """From the smallest batch to the largest: ratio or difference, paired by seed, with its 95 % interval.

        None with fewer than three seeds, or where a run diverged.
        """
        small, large = self.outcomes[0].final(key), self.outcomes[-1].final(key)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = large / small if of_logarithms else large - small
        mean, low, high = band_of_mean(values[:, None], of_logarithms=of_logarithms)
        if low is None or high is None or not np.isfinite([low[0], high[0]]).all():
            return None
        return mean[0], low[0], high[0]


def run(experiment: Experiment, settings: Settings) -> Result:
    """Train every batch size for the same epochs, then for the same steps."""
    config = experiment.config
    epochs = [_train(experiment, settings, "epochs", size, config.length) for size in settings.batch_sizes]
    num_steps = int(epochs[0].summaries[0]["steps"])
    # The first batch size takes as many steps in those epochs: its runs are in both.
    steps = [epochs[0], *(_train(experiment, settings, "steps", size, f"{num_steps}steps")
                          for size in settings.batch_sizes[1:])]  # fmt: skip
    series = [
        Series(f"equal epochs ({config.length})", settings.batch_sizes, epochs),
        Series(f"equal steps ({num_steps})", settings.batch_sizes, steps),
    ]
    return Result(
        title="Noise and minima",
        question="Does a larger batch end in a sharper minimum, and with a larger generalization gap?",
        sentences=_sentences(series),
        tables=(_table(experiment, series, settings),),
        figures=(
            _figure(series, _LAMBDA, "lambda_max", "Largest Hessian eigenvalue", log=True),
            _figure(series, _M_SHARPNESS, "m_sharpness", f"{config.observers.sharpness.m}-sharpness", log=True),
            _figure(series, _GAP, "gap", "Validation loss - training loss", log=False),
            _against_loss(series),
        ),
        numbers={name: _numbers(one) for name, one in zip(("equal_epochs", "equal_steps"), series, strict=True)},
    )


def _train(experiment: Experiment, settings: Settings, name: str, size: int, length: str) -> Outcome:
    return train_seeds(
        experiment, f"{name}-b{size}", f"batch.total={size}", f"length={length}", seeds=range(settings.seeds)
    )


def _figure(series: Sequence[Series], key: str, name: str, title: str, *, log: bool) -> Diagram:
    lines = tuple(
        Line(one.name, one.batch_sizes, *band_of_mean(finals(one.outcomes, key), of_logarithms=log), style="both")
        for one in series
    )
    mean = "geometric mean" if log else "mean"
    return Diagram(
        f"{name}_over_batch", f"{title}, at the end", Axis("batch size", "samples", log=True),
        Axis(title[0].lower() + title[1:], log=log), lines, f"Bands: 95 % of the {mean} over seeds.",
    )  # fmt: skip


def _against_loss(series: Sequence[Series]) -> Diagram:
    """Every run as a point: whether sharpness tells more than how far a run has come."""
    lines = tuple(
        Line(one.name, finals(one.outcomes, _TRAIN).ravel().tolist(), finals(one.outcomes, _LAMBDA).ravel().tolist(),
             style="points")
        for one in series
    )  # fmt: skip
    return Diagram(
        "lambda_max_over_loss", "The curvature follows the training loss", Axis("training loss", log=True),
        Axis("lambda_max", log=True), lines, "A point per run.",
    )  # fmt: skip


def _table(experiment: Experiment, series: Sequence[Series], settings: Settings) -> Table:
    m = experiment.config.observers.sharpness.m
    headers = ("runs of", "batch", "steps", "training loss", "lambda_max", f"{m}-sharpness", "loss gap",
               "validation accuracy")  # fmt: skip
    rows = [
        (
            one.name, f"{size:,}", f"{outcome.summaries[0]['steps']:,}",
            *(_with_spread(outcome.final(key)) for key in (_TRAIN, _LAMBDA, _M_SHARPNESS, _GAP, _ACCURACY)),
        )
        for one in series
        for size, outcome in zip(one.batch_sizes, one.outcomes, strict=True)
    ]  # fmt: skip
    lr = experiment.config.scaling.base_lr
    return Table(f"plain SGD, rate {lr:g}; means of {settings.seeds} seeds ± standard error", headers, rows)


def _with_spread(values: Float64Array) -> str:
    if len(values) < 2:
        return f"{values[0]:.3g}"
    return f"{values.mean():.3g} ± {values.std(ddof=1) / np.sqrt(len(values)):.1g}"


def _sentences(series: Sequence[Series]) -> list[str]:
    first, last = series[0].batch_sizes[0], series[0].batch_sizes[-1]
    sentences = verdict_sentences(series)
    for one in series:
        changes = [
            _change_text(one.change(key, of_logarithms=is_ratio), name, is_ratio)
            for key, name, is_ratio in (
                (_LAMBDA, "lambda_max", True), (_M_SHARPNESS, "the m-sharpness", True), (_GAP, "the loss gap", False),
            )
        ]  # fmt: skip
        losses = [float(outcome.final(_TRAIN).mean()) for outcome in (one.outcomes[0], one.outcomes[-1])]
        sentences.append(f"From batch {first} to {last:,}, at {one.name}: {'; '.join(changes)}.")
        sentences.append(f"At {one.name} the training loss goes from {losses[0]:.2g} to {losses[1]:.2g}.")
    return sentences


def _change_text(change: tuple[float, float, float] | None, name: str, is_ratio: bool) -> str:
    if change is None:
        return f"{name} is not known well enough"
    value, low, high = change
    if is_ratio:
        return f"{name} is {value:.2f} times as large (95 %: {low:.2f} to {high:.2f})"
    return f"{name} changes by {value:+.3f} (95 %: {low:+.3f} to {high:+.3f})"


def verdict_sentences(series: Sequence[Series]) -> list[str]:
    """Whether the textbook's sentence holds at equal steps, where large batches are trained as long."""
    one = series[-1]
    sharper, gap = one.change(_LAMBDA, of_logarithms=True), one.change(_GAP, of_logarithms=False)
    seeds = len(one.outcomes[0].rows)
    if seeds < LEAST_SEEDS:
        subject = seeds_text(seeds).capitalize()
        return [f"{subject} cannot tell whether the change from small to large batches is more than noise."]
    if sharper is None or gap is None:
        return []
    is_sharper, is_worse = sharper[1] > 1, gap[1] > 0
    words = (
        "sharper" if is_sharper else "flatter" if sharper[2] < 1 else "no sharper as far as the seeds tell",
        "generalizes worse" if is_worse else "generalizes better" if gap[2] < 0 else "its gap does not clearly differ",
    )
    textbook = "the textbook is right" if is_sharper and is_worse else "this does not support the textbook"
    sentences = [f"With equal steps the large batch ends {words[0]}, and {words[1]}: {textbook}."]
    losses = one.change(_TRAIN, of_logarithms=True)
    if is_sharper and losses is not None and losses[1] > 1:
        sentences.append(
            f"Part of that is the training loss, which is {losses[0]:.2f} times as high: curvature falls with it on "
            "the way to a minimum."
        )
    return sentences


def _numbers(one: Series) -> dict[str, Any]:
    keys = (_TRAIN, _LAMBDA, _M_SHARPNESS, _GAP, _ACCURACY)
    return {"batch_sizes": one.batch_sizes} | {key: finals(one.outcomes, key) for key in keys}
