"""Batch, stochastic and mini-batch gradient descent on one linear regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from largebatch.diagnostics.closed_forms import LeastSquares
from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section
from largebatch.experiments.textbook.bands import band_of_mean
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.landscape import landscape
from largebatch.experiments.textbook.regression import floor_sentence, least_squares, noise_floor
from largebatch.experiments.textbook.weight_path import Float64Array, WeightPath, thinned
from largebatch.records.figures.diagram import Axis, Diagram, Line, Surface
from largebatch.records.result import Result, Table


class VariantSettings(Section):
    """One way to descend."""

    lr: PositiveFloat
    seeds: PositiveInt


class MiniBatchSettings(VariantSettings):
    """The way between the two extremes."""

    total: Annotated[int, Field(ge=2)]


class Settings(Section):
    """See conf/experiment/textbook/gd_variants.yaml."""

    tolerance: Annotated[float, Field(gt=0, lt=1)]
    batch: VariantSettings
    stochastic: VariantSettings
    mini_batch: MiniBatchSettings


@dataclass(frozen=True)
class Variant:
    """The runs of one variant; losses are L(w) - L(w*) over the whole training set.

    Attributes:
        name: in tables and labels.
        paths: of the weights, one per seed.
        losses: [seeds, points].
        reached: index of the first point within the tolerance of the mean loss over seeds; None: there is none.
        floors: mean loss at the ends of the last half of the epochs, [seeds].
        expected_floor: the closed forms' loss there by noise alone.
    """

    name: str
    total: int
    lr: float
    paths: list[WeightPath]
    losses: Float64Array
    reached: int | None
    floors: Float64Array
    expected_floor: float

    @property
    def floor(self) -> float:
        """Mean over seeds."""
        return float(self.floors.mean())

    @property
    def seconds(self) -> Float64Array:
        """Mean over seeds of the time spent in steps, [points]."""
        return np.mean([path.seconds for path in self.paths], axis=0)


def run(experiment: Experiment, settings: Settings) -> Result:
    """Train the three, from the same start."""
    task = least_squares(experiment)
    num_samples = len(task.design)
    variants = [
        _variant(experiment, settings, task, "batch", num_samples, settings.batch),
        _variant(experiment, settings, task, "stochastic", 1, settings.stochastic),
        _variant(experiment, settings, task, "mini_batch", settings.mini_batch.total, settings.mini_batch),
    ]
    batch = variants[0]
    path = batch.paths[0].weights
    exact = task.trajectory(path[0], lr=batch.lr, num_steps=len(path) - 1)
    deviation = float(np.abs(path - exact).max())
    return Result(
        title="Batch, stochastic and mini-batch gradient descent",
        question="In equal epochs, which is closest to the minimum: updates from one sample, from some, or from all?",
        sentences=_sentences(variants, settings, deviation, num_samples),
        tables=_tables(variants, settings, num_samples),
        figures=(*_curves(variants, num_samples), _landscape(task, variants)),
        numbers={one.name: _numbers(one, num_samples) for one in variants} | {"deviation_from_closed_form": deviation},
    )


def _variant(
    experiment: Experiment, settings: Settings, task: LeastSquares, name: str, total: int, how: VariantSettings
) -> Variant:
    paths = []
    for number in range(how.seeds):
        paths.append(WeightPath())
        experiment.train(
            f"{name}-{number}",
            f"batch.total={total}",
            f"scaling.base_lr={how.lr}",
            f"seed={experiment.config.seed + number}",
            observers=[paths[-1]],
        )
    losses = np.stack([task.excess(path.weights) for path in paths])
    mean = losses.mean(axis=0)
    within = np.flatnonzero(mean <= settings.tolerance * mean[0])
    return Variant(
        name=name,
        total=total,
        lr=how.lr,
        paths=paths,
        losses=losses,
        reached=int(within[0]) if within.size else None,
        floors=losses[:, _ends_of_late_epochs(paths[0], len(task.design))].mean(axis=1),
        expected_floor=noise_floor(task, total, how.lr),
    )


def _ends_of_late_epochs(path: WeightPath, num_samples: int) -> npt.NDArray[np.int64]:
    """The points next to the ends of the last half of the epochs."""
    epochs = int(path.samples[-1]) // num_samples
    ends = num_samples * np.arange(epochs // 2 + 1, epochs + 1)
    return np.searchsorted(path.samples, ends if len(ends) else path.samples[-1:])


def _curves(variants: list[Variant], num_samples: int) -> list[Diagram]:
    """The same losses over epochs, updates and seconds."""
    places = (
        ("epochs", Axis("epochs"), lambda one: one.paths[0].samples / num_samples, True),
        ("updates", Axis("updates", log=True), lambda one: one.paths[0].steps, False),
        ("seconds", Axis("time in steps", "s", log=True), lambda one: one.seconds, False),
    )
    diagrams = []
    for name, axis, place, evenly in places:
        lines = []
        for one in variants:
            kept = thinned(one.losses.shape[1], evenly=evenly)
            kept = kept[1:] if axis.log else kept  # the start has no place on a logarithmic axis
            band = band_of_mean(one.losses[:, kept], of_logarithms=True)
            lines.append(Line(_label(one), place(one)[kept].tolist(), band.mean, band.low, band.high))
        caption = "Bands: 95 % of the geometric mean over seeds." if any(line.low is not None for line in lines) else ""
        diagrams.append(
            Diagram(
                f"loss_over_{name}", f"Loss over {axis.label}", axis, Axis("loss above the least one", log=True),
                tuple(lines), caption,
            )
        )  # fmt: skip
    return diagrams


def _landscape(task: LeastSquares, variants: list[Variant]) -> Surface:
    """Over the two eigenvectors along which the start is farthest from the minimiser."""
    start = task.along_eigenvectors(variants[0].paths[0].weights[0])
    first, second = np.sort(np.argsort(-np.abs(start))[:2])[::-1]
    share = float((start[[first, second]] ** 2).sum() / (start**2).sum())
    return landscape(
        (float(task.eigenvalues[first]), float(task.eigenvalues[second])),
        {_label(one): task.along_eigenvectors(one.paths[0].weights)[:, [first, second]] for one in variants},
        name="landscape",
        title="Three paths over one landscape",
        caption="Coordinates along eigenvectors of the Hessian with eigenvalue h, measured from the minimiser. The "
        f"loss is a sum over {len(start)} of them; these two hold {share:.0%} of the squared distance of the start.",
    )


def _tables(variants: list[Variant], settings: Settings, num_samples: int) -> tuple[Table, Table]:
    ends, reached = [], []
    for one in variants:
        path, name, at = one.paths[0], one.name.replace("_", "-"), one.reached
        noise = ("", "") if one.total == num_samples else (f"{one.floor:.3g}", f"{one.expected_floor:.3g}")
        end = f"{one.losses[:, -1].mean():.3g}"
        ends.append((name, f"{one.total:,}", f"{one.lr:g}", f"{path.steps[-1]:,.0f}", end, *noise))
        if at is None:
            reached.append((name, "never", "", ""))
        else:
            places = (f"{path.samples[at] / num_samples:.3g}", f"{path.steps[at]:,.0f}", f"{one.seconds[at]:.3g}")
            reached.append((name, *places))
    epochs = variants[0].paths[0].samples[-1] / num_samples
    return (
        Table(
            f"loss above the least one in {epochs:g} epochs of {num_samples:,} samples, from the same start",
            ("descent", "batch", "rate", "updates", "at the end", "late epochs", "expected"),
            ends,
        ),
        Table(f"to {settings.tolerance:g} of it at the start", ("descent", "epochs", "updates", "seconds"), reached),
    )


def _sentences(variants: list[Variant], settings: Settings, deviation: float, num_samples: int) -> list[str]:
    closest = min(variants, key=lambda one: one.losses[:, -1].mean())
    epochs = variants[0].paths[0].samples[-1] / num_samples
    first, *others = [(_descent(one), f"{one.paths[0].steps[-1]:,.0f}") for one in variants]
    made = [f"{first[0].capitalize()} made {first[1]} updates", *(f"{name} {count}" for name, count in others)]
    sentences = [
        f"After {epochs:g} epochs {_descent(closest)} is closest to the minimum: its loss is "
        f"{closest.losses[:, -1].mean():.2g} above it.",
        f"{', '.join(made)}.",
    ]
    reached = [one for one in variants if one.reached is not None]
    if reached:
        samples, updates, seconds = (
            _descent(min(reached, key=key))
            for key in (
                lambda one: one.paths[0].samples[one.reached],
                lambda one: one.paths[0].steps[one.reached],
                lambda one: one.seconds[one.reached],
            )
        )
        sentences.append(
            f"To reach {settings.tolerance:g} of the first loss, {samples} needs the fewest samples, {updates} the "
            f"fewest updates, and {seconds} the least time."
        )
    sentences.append(f"Batch gradient descent follows its closed form to {deviation:.1g}.")
    floors = [
        floor_sentence(_descent(one), one.floors, one.expected_floor, is_shuffled=num_samples % one.total == 0)
        for one in variants[1:]
    ]
    return [*sentences, *floors]


def _descent(one: Variant) -> str:
    return f"{one.name.replace('_', '-')} descent"


def _label(one: Variant) -> str:
    return f"{one.name.replace('_', '-')} (B = {one.total:,}, rate {one.lr:g})"


def _numbers(one: Variant, num_samples: int) -> dict[str, Any]:
    at, path = one.reached, one.paths[0]
    return {
        "global_batch_size": one.total,
        "lr": one.lr,
        "updates": int(path.steps[-1]),
        "final_excess": one.losses[:, -1],
        "late_excess": one.floor,
        "late_excess_of_seeds": one.floors,
        "expected_late_excess": one.expected_floor,
        "reached_epochs": None if at is None else path.samples[at] / num_samples,
        "reached_updates": None if at is None else int(path.steps[at]),
        "reached_seconds": None if at is None else float(one.seconds[at]),
        "train_seconds": float(one.seconds[-1]),
    }
