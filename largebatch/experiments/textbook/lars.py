"""SGD, LARS and LAMB over batch sizes, each with a rate tuned for every batch size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from largebatch.diagnostics.intervals import LEAST_SEEDS
from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section
from largebatch.experiments.textbook.bands import band_of_mean, seeds_text
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.outcomes import Outcome, finals, train_seeds
from largebatch.experiments.textbook.weight_path import Float64Array
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.result import Result, Table

_TRAIN_LOSS, _LOSS, _ACCURACY = "eval/train_loss", "eval/val_loss", "eval/val_accuracy"
Name = Literal["sgd", "lars", "lamb"]


class Settings(Section):
    """See conf/experiment/textbook/lars.yaml."""

    batch_sizes: Annotated[list[PositiveInt | Literal["full"]], Field(min_length=2)]
    base_lrs: Annotated[dict[Name, PositiveFloat], Field(min_length=1)]
    grid: Annotated[list[PositiveFloat], Field(min_length=2)]
    seeds: PositiveInt
    tolerance: PositiveFloat


@dataclass(frozen=True)
class Tuned:
    """An optimizer at a batch size.

    Attributes:
        global_batch_size, num_steps: of its runs.
        lrs: of the grid.
        tried: validation loss of the first seed at each of them; infinite for a run that diverged.
        chosen: index of the least.
        outcome: of the other seeds at the chosen rate.
    """

    global_batch_size: int
    num_steps: int
    lrs: list[float]
    tried: Float64Array
    chosen: int
    outcome: Outcome

    @property
    def is_at_border(self) -> bool:
        """Whether the best rate may lie outside the grid."""
        return self.chosen in (0, len(self.lrs) - 1)


def run(experiment: Experiment, settings: Settings) -> Result:
    """Tune every optimizer at every batch size, and train other seeds with the chosen rates."""
    found = {name: [tune(experiment, settings, name, size) for size in settings.batch_sizes]
             for name in settings.base_lrs}  # fmt: skip
    return Result(
        title="SGD, LARS and LAMB over batch sizes",
        question="With a rate tuned per optimizer and batch size, which keeps its accuracy at large batches?",
        sentences=_sentences(found, settings),
        tables=(_table(experiment, found, settings),),
        figures=(_accuracy_figure(experiment, found), _loss_figure(experiment, found), _grid_figure(found)),
        numbers={name: [_numbers(one) for one in tuned] for name, tuned in found.items()},
    )


def tune(experiment: Experiment, settings: Settings, name: Name, size: int | str) -> Tuned:
    """Choose the rate of an optimizer for a batch size, and train other seeds with it."""
    base_lr, scaling = settings.base_lrs[name], experiment.config.scaling
    # The file of an optimizer brings a rule and a base of its own.
    common = (f"optimizer={name}", f"scaling.rule={scaling.rule}", f"scaling.base_batch_size={scaling.base_batch_size}",
              f"batch.total={size}")  # fmt: skip
    tried = [
        train_seeds(experiment, f"{name}-b{size}-x{times:g}", *common, f"scaling.base_lr={base_lr * times}", seeds=[0])
        for times in settings.grid
    ]
    plans = [
        json.loads(
            Path(experiment.folder, "runs", f"{name}-b{size}-x{times:g}-0", "plan.json").read_text(encoding="utf-8")
        )
        for times in settings.grid
    ]
    losses = np.nan_to_num([outcome.final(_LOSS)[0] for outcome in tried], nan=np.inf)
    chosen = int(np.argmin(losses))
    outcome = train_seeds(
        experiment, f"{name}-b{size}-chosen", *common, f"scaling.base_lr={base_lr * settings.grid[chosen]}",
        seeds=range(1, settings.seeds + 1),
    )  # fmt: skip
    lrs = [plan["peak_lr"]["value"] for plan in plans]
    return Tuned(plans[0]["global_batch_size"], plans[0]["num_steps"], lrs, losses, chosen, outcome)


def _accuracy_figure(experiment: Experiment, found: dict[Name, list[Tuned]]) -> Diagram:
    return Diagram(
        "accuracy_over_batch", f"Validation accuracy after {experiment.config.length}, rate tuned for every batch size",
        Axis("batch size", "samples", log=True), Axis("validation accuracy"),
        _bands(found, _ACCURACY, within=(0.0, 1.0)),
        "Bands: 95 % of the mean over seeds that the tuning did not see.",
    )  # fmt: skip


def _loss_figure(experiment: Experiment, found: dict[Name, list[Tuned]]) -> Diagram:
    return Diagram(
        "train_loss_over_batch", f"Training loss after {experiment.config.length}",
        Axis("batch size", "samples", log=True), Axis("training loss", log=True),
        _bands(found, _TRAIN_LOSS, of_logarithms=True),
        "Bands: 95 % of the geometric mean over the same seeds.",
    )  # fmt: skip


def _bands(found: dict[Name, list[Tuned]], key: str, **options: Any) -> tuple[Line, ...]:
    """A line per optimizer over the batch sizes: the mean of `key` over seeds with its band, see `band_of_mean`."""
    return tuple(
        Line(
            name.upper(),
            _sizes(tuned),
            *band_of_mean(finals([one.outcome for one in tuned], key), **options),
            style="both",
            optimizer=name.upper(),
        )
        for name, tuned in found.items()
    )


def _grid_figure(found: dict[Name, list[Tuned]]) -> Diagram:
    lines = tuple(
        Line(
            name.upper(), [lr / one.lrs[0] for lr in one.lrs], one.tried.tolist(), style="both", optimizer=name.upper()
        )
        for name, tuned in found.items()
        for one in tuned[-1:]
    )
    size = next(iter(found.values()))[-1].global_batch_size
    return Diagram(
        "grid", f"Validation loss on the grid, batch {size:,}", Axis("rate over the smallest of the grid", log=True),
        Axis("validation loss", log=True), lines, "One seed.",
    )  # fmt: skip


def _sizes(tuned: Sequence[Tuned]) -> list[int]:
    return [one.global_batch_size for one in tuned]


def _table(experiment: Experiment, found: dict[Name, list[Tuned]], settings: Settings) -> Table:
    headers = ("optimizer", "batch", "steps", "rates tried", "chosen", "training loss", "validation accuracy", "95 %")
    rows = []
    for name, tuned in found.items():
        for one in tuned:
            mean, low, high = band_of_mean(one.outcome.final(_ACCURACY)[:, None], within=(0.0, 1.0))
            unknown = f"{seeds_text(settings.seeds)}: no interval"
            interval = unknown if low is None or high is None else f"{low[0]:.3f} to {high[0]:.3f}"
            border = ", at the border" if one.is_at_border else ""
            rows.append(
                (
                    name.upper(), f"{one.global_batch_size:,}", f"{one.num_steps:,}",
                    f"{min(one.lrs):.3g} to {max(one.lrs):.3g}", f"{one.lrs[one.chosen]:.3g}{border}",
                    f"{one.outcome.final(_TRAIN_LOSS).mean():.3g}", f"{mean[0]:.4f}", interval,
                )
            )  # fmt: skip
    title = f"{experiment.config.length}; rates chosen with one seed by validation loss, then {settings.seeds} others"
    return Table(title, headers, rows)


def _sentences(found: dict[Name, list[Tuned]], settings: Settings) -> list[str]:
    means = {name: finals([one.outcome for one in tuned], _ACCURACY).mean(axis=0) for name, tuned in found.items()}
    sentences = _against_sgd(found) if "sgd" in found and len(found) > 1 else []
    for name, tuned in found.items():
        held = [one.global_batch_size for one, mean in zip(tuned, means[name], strict=True)
                if mean >= means[name][0] - settings.tolerance]  # fmt: skip
        first, last = tuned[0].global_batch_size, tuned[-1]
        sentences.append(
            f"{name.upper()} keeps its accuracy up to batch {max(held, default=first):,}: within "
            f"{settings.tolerance:g} of batch {first}, in the mean of {seeds_text(settings.seeds)}. At batch "
            f"{last.global_batch_size:,} it has {means[name][-1]:.3f}, after {last.num_steps:,} steps."
        )
    at_border = [f"{name.upper()} at {one.global_batch_size:,}" for name, tuned in found.items() for one in tuned
                 if one.is_at_border]  # fmt: skip
    if at_border:
        sentences.append(f"The best rate may lie outside the grid for {', '.join(at_border)}.")
    return sentences


def _against_sgd(found: dict[Name, list[Tuned]]) -> list[str]:
    """Whether the layer-wise methods are ahead at the largest batch, paired by seed."""
    sentences, is_ahead, sgd = [], False, found["sgd"][-1].outcome.final(_ACCURACY)
    has_interval, size = len(sgd) >= LEAST_SEEDS, found["sgd"][-1].global_batch_size
    for name in found:
        if name == "sgd":
            continue
        ahead, low, high = band_of_mean((found[name][-1].outcome.final(_ACCURACY) - sgd)[:, None])
        if low is None or high is None:
            verdict = f"{seeds_text(len(sgd))} cannot tell that from noise"
        elif low[0] > 0 or high[0] < 0:
            verdict = f"95 %: {low[0]:+.3f} to {high[0]:+.3f}"
            is_ahead = is_ahead or low[0] > 0
        else:
            verdict = f"95 %: {low[0]:+.3f} to {high[0]:+.3f}, no clear difference"
        sentences.append(f"At batch {size:,} {name.upper()} is {ahead[0]:+.3f} against tuned SGD ({verdict}).")
    if not is_ahead and has_interval:
        sentences.insert(
            0, "No trust ratio is shown to beat tuned SGD here; nor did Nado et al. 2021 find one in large models."
        )
    return sentences


def _numbers(one: Tuned) -> dict[str, Any]:
    return {
        "global_batch_size": one.global_batch_size,
        "num_steps": one.num_steps,
        "lrs": one.lrs,
        "tried_val_loss": one.tried,
        "chosen_lr": one.lrs[one.chosen],
        "is_at_border": one.is_at_border,
    } | {key: one.outcome.final(key) for key in (_TRAIN_LOSS, _LOSS, _ACCURACY)}
