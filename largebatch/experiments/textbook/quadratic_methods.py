"""Which choices of the optimizer matter at which batch sizes? Answered by the noisy quadratic in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from largebatch.diagnostics.closed_forms import Descent, NoisyQuadratic, best_rate, expected_losses
from largebatch.diagnostics.closed_forms.arrays import Float64Array
from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section
from largebatch.experiments.textbook.bands import Agreement, agreement
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.quadratic_task import quadratic_task
from largebatch.experiments.textbook.weight_path import WeightPath
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.result import Result, Table
from largebatch.run.config.reading import ConfigError

SGD, MOMENTUM, AVERAGE = "SGD", "momentum", "average"
_SIZES = Axis("batch size", "samples", log=True)
_Share = Annotated[float, Field(gt=0, lt=1)]


class Trained(Section):
    """Runs that are held to the closed form."""

    total: PositiveInt
    momentum: _Share
    seeds: Annotated[int, Field(ge=2)]


class Settings(Section):
    """See conf/experiment/textbook/quadratic_methods.yaml."""

    dimensions: PositiveInt
    target_loss: PositiveFloat
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=3)]
    momenta: Annotated[list[_Share], Field(min_length=1)]
    averages: Annotated[list[_Share], Field(min_length=1)]
    powers: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]
    trained: Trained


@dataclass(frozen=True)
class Course:
    """The fewest steps of a method at every batch size.

    Attributes:
        name: of the method.
        best: (the optimizer, its steps) at each batch size, ascending.
    """

    name: str
    best: tuple[tuple[Descent, int], ...]

    @property
    def steps(self) -> list[int]:
        """At each batch size."""
        return [steps for _, steps in self.best]

    def useful_batch(self, sizes: Sequence[int]) -> float:
        """The batch size that takes twice the steps of the largest one: beyond it, doubling saves less than half.

        Log-log between the measured sizes; the smallest or largest where it lies outside.
        """
        wanted = math.log(2 * self.steps[-1])
        return float(math.exp(np.interp(-wanted, -np.log(self.steps), np.log(sizes))))


def run(experiment: Experiment, settings: Settings) -> Result:
    """Compute the courses, and train on a small task of the same kind to hold the trainer to its closed form."""
    sizes = sorted(set(settings.batch_sizes))
    curvature = 1 / np.arange(1, settings.dimensions + 1, dtype=np.float64)
    task, start = NoisyQuadratic(curvature, curvature), np.ones(settings.dimensions)
    if task.loss(start) <= settings.target_loss:
        raise ConfigError([
            f"textbook.target_loss={settings.target_loss:g}: the loss is {task.loss(start):.4g} before the first step. "
            "Choose a smaller one."
        ])  # fmt: skip
    choices: dict[str, list[dict[str, float]]] = {
        SGD: [{}],
        MOMENTUM: [{"momentum": one} for one in settings.momenta],
        AVERAGE: [{"ema": one} for one in settings.averages],
        **{f"power {one:g}": [{"power": one}] for one in settings.powers},
    }
    strongest = max(settings.powers)
    choices[f"power {strongest:g}, momentum"] = [one | {"power": strongest} for one in choices[MOMENTUM]]
    courses = [_course(name, task, start, tried, sizes, settings.target_loss) for name, tried in choices.items()]
    agrees = _trained(experiment, settings.trained)
    return Result(
        title="Which choices matter at which batch sizes",
        question="What do momentum, an average of the weights and a preconditioner save, and at which batch sizes?",
        sentences=[*_sentences(courses, sizes), _of_trained(agrees, settings.trained)],
        tables=(_table(courses, sizes),),
        figures=(_steps(courses, sizes, settings), _rates(courses, sizes)),
        numbers={"batch_sizes": sizes, "courses": [_numbers(one, sizes) for one in courses], "trained": asdict(agrees)},
    )


def _course(
    name: str,
    task: NoisyQuadratic,
    start: Float64Array,
    tried: Sequence[dict[str, float]],
    sizes: Sequence[int],
    target_loss: float,
) -> Course:
    """Each setting with its own best rate, and the best of them; plain SGD is the limit of all of them."""
    best = []
    for size in sizes:
        found = [best_rate(task, start, target_loss=target_loss, global_batch_size=size, **one) for one in tried]
        best.append(min(found, key=lambda one: one[1]))
    return Course(name, tuple(best))


def _trained(experiment: Experiment, settings: Trained) -> Agreement:
    """Losses of the trainer over the expected one, after the steps that should take it to a tenth of the first."""
    task, start = quadratic_task(experiment)
    target = 0.1 * task.loss(start)
    descent, num_steps = best_rate(
        task, start, target_loss=target, global_batch_size=settings.total, momentum=settings.momentum
    )
    expected = expected_losses(task, start, descent, num_steps=num_steps, global_batch_size=settings.total)[-1]
    ratios = []
    for number in range(settings.seeds):
        path = WeightPath()
        experiment.train(
            f"momentum-{number}",
            f"batch.total={settings.total}",
            f"length={num_steps}steps",
            f"optimizer.momentum={settings.momentum!r}",
            f"scaling.base_lr={descent.lr!r}",
            f"seed={experiment.config.seed + number}",
            observers=[path],
        )
        ratios.append(task.loss(path.weights[-1]) / expected)
    return agreement(ratios)


def _sentences(courses: Sequence[Course], sizes: Sequence[int]) -> list[str]:
    sgd, *others = courses
    compared = [_against(sgd, one, sizes) for one in others]
    useful = ", ".join(f"{one.name} {one.useful_batch(sizes):,.0f}" for one in courses)
    growth = _rate_growth(sgd, sizes)
    return [
        f"Steps against SGD's: {'; '.join(compared)}.",
        f"Batches are of use up to twice the fewest steps, which is at {useful}.",
        f"SGD's best rate grows as the batch to the power {growth[0]:.2f} at the smallest batches and "
        f"{growth[1]:.2f} at the largest: linear scaling holds below the critical batch, and no rule above it.",
    ]


def _of_trained(found: Agreement, settings: Trained) -> str:
    return (
        f"The trainer's loss with momentum {settings.momentum:g} at batch {settings.total}, {found.seeds} seeds, is "
        f"{found.value:.2f} times the expected one{found.interval}: {found.words}."
    )


def _against(sgd: Course, other: Course, sizes: Sequence[int]) -> str:
    """Ratios of the steps at both ends, and the least one if it lies between them."""
    ratios = [mine / its for mine, its in zip(other.steps, sgd.steps, strict=True)]
    places = sorted({0, int(np.argmin(ratios)), len(sizes) - 1})
    shown = [f"{ratios[place]:.2g} x at batch {sizes[place]:,}" for place in places]
    return f"{other.name} {', '.join(shown)}"


def _rate_growth(course: Course, sizes: Sequence[int]) -> tuple[float, ...]:
    """D log lr / d log B between the two smallest and the two largest batch sizes."""
    slopes = np.diff(np.log([one.lr for one, _ in course.best])) / np.diff(np.log(sizes))
    return tuple(round(float(one), 2) + 0.0 for one in (slopes[0], slopes[-1]))  # no -0.00


def _table(courses: Sequence[Course], sizes: Sequence[int]) -> Table:
    rows = [(f"{size:,}", *(f"{one.steps[place]:,}" for one in courses)) for place, size in enumerate(sizes)]
    rows.append(("useful up to", *(f"{one.useful_batch(sizes):,.0f}" for one in courses)))
    return Table(
        "fewest expected steps to the loss; power p: gradients times curvature^-p",
        ("batch size", *(one.name for one in courses)),
        tuple(rows),
    )


def _steps(courses: Sequence[Course], sizes: Sequence[int], settings: Settings) -> Diagram:
    return Diagram(
        "steps_of_methods",
        f"Steps to a loss of {settings.target_loss:g} on the noisy quadratic",
        _SIZES,
        Axis("optimizer steps", log=True),
        tuple(Line(one.name, sizes, one.steps, style="both") for one in courses),
        "Exact expectations; each point has the best rate, and momentum and average their best values.",
    )


def _rates(courses: Sequence[Course], sizes: Sequence[int]) -> Diagram:
    sgd = courses[0].best[0][0].lr
    linear = [sgd * size / sizes[0] for size in sizes]
    shown = [value if value <= 4 * max(one.lr for one, _ in courses[0].best) else None for value in linear]
    return Diagram(
        "rates_of_methods",
        "The best learning rate against the batch size",
        _SIZES,
        Axis("effective rate lr / (1 - m)", log=True),
        (
            *(Line(one.name, sizes, [best.lr / (1 - best.momentum) for best, _ in one.best], style="both")
              for one in courses),
            Line("linear scaling of SGD", sizes, shown, style="dashed"),
        ),
        "Linear while noise decides, flat where curvature does.",
    )  # fmt: skip


def _numbers(course: Course, sizes: Sequence[int]) -> dict[str, Any]:
    return {
        "method": course.name,
        "steps": course.steps,
        "lr": [one.lr for one, _ in course.best],
        "momentum": [one.momentum for one, _ in course.best],
        "ema": [one.ema for one, _ in course.best],
        "useful_batch": course.useful_batch(sizes),
    }
