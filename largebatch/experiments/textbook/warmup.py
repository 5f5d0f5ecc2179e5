"""A large rate from the first step on, after a constant and after a gradual warmup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

from largebatch.diagnostics.intervals import LEAST_SEEDS
from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section
from largebatch.experiments.textbook.bands import band_of_mean, seeds_text
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.outcomes import Outcome, rising, train_seeds
from largebatch.experiments.textbook.weight_path import Float64Array
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.result import Result, Table

_LOSS, _ACCURACY = "eval/train_loss", "eval/val_accuracy"
_NAMES = {"none": "no warmup", "constant": "constant warmup", "gradual": "gradual warmup"}
Kind = Literal["none", "constant", "gradual"]


class Settings(Section):
    """See conf/experiment/textbook/warmup.yaml."""

    kinds: Annotated[list[Kind], Field(min_length=2)]
    base_lrs: Annotated[list[PositiveFloat], Field(min_length=1), AfterValidator(rising)]
    small_batch: PositiveInt
    seeds: PositiveInt
    lost_above: PositiveFloat


@dataclass(frozen=True)
class Warmup:
    """One kind of warmup over all rates.

    Attributes:
        kind: of the warmup.
        outcomes: one per rate.
        losses: of the training set at the end, [rates, seeds]; infinite for a run that diverged.
        highest: training loss of a step after the warmup, [rates, seeds]; without one, of any step.
    """

    kind: Kind
    outcomes: list[Outcome]
    losses: Float64Array
    highest: Float64Array

    def num_lost(self, limit: float) -> list[int]:
        """How many of the seeds end above `limit`, per rate."""
        return [int(np.sum(~(losses <= limit))) for losses in self.losses]


def run(experiment: Experiment, settings: Settings) -> Result:
    """Train every kind at every rate, and a small batch that needs no warmup."""
    small = train_seeds(
        experiment, "small", f"batch.total={settings.small_batch}", f"scaling.base_lr={settings.base_lrs[0]}",
        "schedule.warmup=0ep", seeds=range(settings.seeds),
    )  # fmt: skip
    warmups = [train_warmup(experiment, settings, kind) for kind in settings.kinds]
    config = experiment.config
    peaks = [lr * config.batch.total / config.scaling.base_batch_size for lr in settings.base_lrs]
    shown = _compared_rate(warmups, settings)
    return Result(
        title="Warmup",
        question="What does a large batch gain from a warmup, and does it matter how the rate rises?",
        sentences=_sentences(warmups, peaks, shown, small, settings),
        tables=(_table(experiment, warmups, peaks, small, settings),),
        figures=(_final_figure(warmups, peaks, small), _curves(warmups, peaks, shown), _rates(warmups, shown)),
        numbers={
            "peak_lrs": peaks,
            "small_batch": {key: small.final(key) for key in (_LOSS, _ACCURACY)},
            "shown_peak_lr": peaks[shown],
        }
        | {one.kind: _numbers(one, settings) for one in warmups},
    )


def train_warmup(experiment: Experiment, settings: Settings, kind: Kind) -> Warmup:
    """Train one kind at every rate."""
    change = "schedule.warmup=0ep" if kind == "none" else f"schedule.warmup_kind={kind}"
    outcomes = [
        train_seeds(experiment, f"{kind}-lr{lr}", f"scaling.base_lr={lr}", change, seeds=range(settings.seeds))
        for lr in settings.base_lrs
    ]
    losses = np.stack([np.nan_to_num(outcome.final(_LOSS), nan=np.inf) for outcome in outcomes])
    return Warmup(kind, outcomes, losses, np.stack([highest_at_peak(outcome) for outcome in outcomes]))


def highest_at_peak(outcome: Outcome) -> Float64Array:
    """The largest loss that a run meets once its rate has been at the peak, over its loss just before; [seeds].

    With a constant warmup that is the jump; without one it starts at the second step.
    """
    _, rates = outcome.curve("train/lr")
    _, losses = outcome.curve("train/loss")
    at_peak = int(np.argmax(rates[0]))  # this step's loss belongs to the weights before it
    return np.asarray(losses[:, at_peak + 1 :].max(axis=1) / losses[:, at_peak])


def _compared_rate(warmups: Sequence[Warmup], settings: Settings) -> int:
    """The largest rate at which some kind loses no seed."""
    lost = np.array([one.num_lost(settings.lost_above) for one in warmups]).min(axis=0)
    return int(np.flatnonzero(lost == 0)[-1]) if (lost == 0).any() else 0


def _final_figure(warmups: Sequence[Warmup], peaks: Sequence[float], small: Outcome) -> Diagram:
    lines = [
        Line(_NAMES[one.kind], peaks, np.median(one.losses, axis=1).tolist(), one.losses.min(axis=1).tolist(),
             one.losses.max(axis=1).tolist(), style="both")
        for one in warmups
    ]  # fmt: skip
    level = float(np.median(small.final(_LOSS)))
    lines.append(Line("small batch", [peaks[0], peaks[-1]], [level, level], style="dashed"))
    return Diagram(
        "loss_over_rate", "Training loss at the end, over the peak rate", Axis("peak learning rate"),
        Axis("training loss", log=True), tuple(lines), "Median over seeds; bands from the best seed to the worst.",
    )  # fmt: skip


def _curves(warmups: Sequence[Warmup], peaks: Sequence[float], shown: int) -> Diagram:
    lines = []
    for one in warmups:
        samples, values = one.outcomes[shown].curve("train/loss")
        ends = values.min(axis=0).tolist(), values.max(axis=0).tolist()
        lines.append(Line(_NAMES[one.kind], samples.tolist(), np.median(values, axis=0).tolist(), *ends))
    return Diagram(
        "loss_over_samples", f"Training loss of every step at a peak rate of {peaks[shown]:g}", Axis("samples seen"),
        Axis("training loss", log=True), tuple(lines), "Median over seeds; bands from the best seed to the worst.",
    )  # fmt: skip


def _rates(warmups: Sequence[Warmup], shown: int) -> Diagram:
    lines = []
    for one in warmups:
        samples, rates = one.outcomes[shown].curve("train/lr")
        lines.append(Line(_NAMES[one.kind], samples.tolist(), rates[0].tolist()))
    return Diagram("rate", "The three rates", Axis("samples seen"), Axis("learning rate"), tuple(lines))


def _table(
    experiment: Experiment, warmups: Sequence[Warmup], peaks: Sequence[float], small: Outcome, settings: Settings
) -> Table:
    config = experiment.config
    headers = (
        "peak rate",
        "warmup",
        "lost",
        "training loss",
        "highest loss at the peak / before",
        "validation accuracy",
    )
    rows = [
        (
            f"{peak:g}", str(one.kind), f"{one.num_lost(settings.lost_above)[place]} of {settings.seeds}",
            f"{np.median(one.losses[place]):.3g}", f"{np.median(one.highest[place]):.2f}",
            f"{np.median(one.outcomes[place].final(_ACCURACY)):.4f}",
        )
        for place, peak in enumerate(peaks) for one in warmups
    ]  # fmt: skip
    loss, accuracy = np.median(small.final(_LOSS)), np.median(small.final(_ACCURACY))
    small_lr = settings.base_lrs[0] * settings.small_batch / config.scaling.base_batch_size
    rows.append((f"{small_lr:g}", f"none, batch {settings.small_batch}", "", f"{loss:.3g}", "",
                 f"{accuracy:.4f}"))  # fmt: skip
    title = (f"batch {config.batch.total:,}, {config.length}, warmup {config.schedule.warmup}; medians of "
             f"{settings.seeds} seeds")  # fmt: skip
    return Table(title, headers, rows)


def _sentences(
    warmups: Sequence[Warmup], peaks: Sequence[float], shown: int, small: Outcome, settings: Settings
) -> list[str]:
    reach = {one.kind: _reach(one, peaks, settings) for one in warmups}
    sentences = []
    if "gradual" in reach and len(reach) == 3:
        others = max(reach["none"], reach["constant"])
        verdict = "allows the larger rate" if reach["gradual"] > others else "allows no larger rate here"
        doubt = "" if settings.seeds >= LEAST_SEEDS else f", as far as {seeds_text(settings.seeds)} can tell"
        sentences.append(f"The gradual warmup {verdict}{doubt}.")
    sentences += [
        f"With {_NAMES[kind]} "
        + (f"every seed trains up to a peak rate of {peak:g}." if peak else "no rate trains every seed.")
        for kind, peak in reach.items()
    ]
    for one in warmups:
        if one.kind == "constant":
            jump = float(np.median(one.highest[shown]))
            meaning = "the jump that Goyal et al. 2017 saw" if jump > 2 else "there is no jump"
            sentences.append(
                f"When the constant warmup ends, at a peak rate of {peaks[shown]:g}, the loss rises to {jump:.3g} "
                f"times its value: {meaning}."
            )
    best, second = sorted(warmups, key=lambda one: float(np.median(one.losses[shown])))[:2]
    level = np.median(small.final(_LOSS))
    sentences += [
        f"At that rate {_NAMES[best.kind]} ends lowest: its training loss is {np.median(best.losses[shown]):.2g}, "
        f"{_lead_text(best.losses[shown], second.losses[shown], _NAMES[second.kind])}.",
        f"Batch {settings.small_batch} ends at a training loss of {level:.2g}.",
    ]
    return sentences


def _lead_text(best: Float64Array, second: Float64Array, name: str) -> str:
    """The lead of the best kind by the ratio of losses, paired by seed; a lost run is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        (value,), low, high = band_of_mean((second / best)[:, None], of_logarithms=True)
    if low is None or high is None:
        return f"but {seeds_text(len(best))} cannot tell that from luck"
    if not np.isfinite([low[0], high[0]]).all():
        return f"and {name} loses seeds"
    apart = "" if low[0] > 1 else ": no clear difference"
    return f"and {name} has {value:.2f} times that (95 %: {low[0]:.2f} to {high[0]:.2f}){apart}"


def _reach(one: Warmup, peaks: Sequence[float], settings: Settings) -> float:
    """The largest rate up to which every seed trains at every rate; 0: none."""
    reach = 0.0
    for peak, lost in zip(peaks, one.num_lost(settings.lost_above), strict=True):
        if lost:
            break
        reach = peak
    return reach


def _numbers(one: Warmup, settings: Settings) -> dict[str, Any]:
    return {
        "final_train_loss": one.losses,
        "final_val_accuracy": [outcome.final(_ACCURACY) for outcome in one.outcomes],
        "highest_at_peak": one.highest,
        "num_lost": one.num_lost(settings.lost_above),
    }
