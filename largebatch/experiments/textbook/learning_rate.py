"""Gradient descent on a quadratic over learning rates: it converges, oscillates or diverges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from largebatch.diagnostics.closed_forms import NoisyQuadratic
from largebatch.diagnostics.settings import PositiveFloat, Section
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.landscape import landscape
from largebatch.experiments.textbook.weight_path import Float64Array, WeightPath, thinned
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.result import Result, Table
from largebatch.run.config.reading import ConfigError

Kind = Literal["converges", "oscillates", "diverges"]

_CROSSINGS = 12


class Settings(Section):
    """See conf/experiment/textbook/learning_rate.yaml."""

    rates: list[PositiveFloat]
    around_limit: list[PositiveFloat]
    momenta: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1)]
    tolerance: Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class Descent:
    """A run at one rate.

    Attributes:
        lr, momentum: of the run.
        limit: the largest stable rate at this momentum.
        theta: the path of the weights, [steps + 1, d].
        losses: 1/2 sum h theta^2, [steps + 1].
        kind: the behaviour of the measured path.
        expected: the behaviour by the eigenvalues of a step.
        deviation: largest distance of a coordinate from the closed form, relative to the largest coordinate so far.
        reached: steps to the tolerance; None: not reached.
    """

    lr: float
    momentum: float
    limit: float
    theta: Float64Array
    losses: Float64Array
    kind: Kind
    expected: Kind
    deviation: float
    reached: int | None


def run(experiment: Experiment, settings: Settings) -> Result:
    """A run per rate and momentum."""
    task = _task(experiment)
    descents = [
        _descent(experiment, task, settings, lr, momentum)
        for momentum in settings.momenta
        for lr in _rates(settings, task.max_stable_lr(momentum=momentum))
    ]
    return Result(
        title="The learning rate of gradient descent",
        question="At which learning rates does gradient descent converge, oscillate, diverge?",
        sentences=_sentences(task, descents, settings),
        tables=(_table(descents, settings),),
        figures=(*_curves(descents), *_landscapes(task, descents)),
        numbers={"curvature": task.curvature, "runs": [_numbers(one) for one in descents]},
    )


def _rates(settings: Settings, limit: float) -> list[float]:
    return sorted({*settings.rates, *(factor * limit for factor in settings.around_limit)})


def _task(experiment: Experiment) -> NoisyQuadratic:
    config = experiment.config
    try:
        curvature = np.repeat(np.array(list(config.model.curvature), dtype=np.float64), config.model.copies)
        return NoisyQuadratic(curvature, np.zeros_like(curvature))
    except (AttributeError, ValueError) as error:
        raise ConfigError(
            [f"model.curvature: {error} This experiment compares its runs with the closed forms of "
             "largebatch.models.Quadratic. Leave data and model as they are, and name a positive curvature."]
        ) from None  # fmt: skip


def _descent(experiment: Experiment, task: NoisyQuadratic, settings: Settings, lr: float, momentum: float) -> Descent:
    path = WeightPath()
    name = f"momentum-{momentum:g}-rate-{lr:.4g}"
    experiment.train(name, f"scaling.base_lr={lr!r}", f"optimizer.momentum={momentum!r}", observers=[path])
    theta = path.weights
    losses = 0.5 * theta**2 @ task.curvature
    exact = task.mean_trajectory(theta[0], lr=lr, num_steps=len(theta) - 1, momentum=momentum)
    size = np.maximum.accumulate(np.abs(exact).max(axis=1))[:, None]
    within = np.flatnonzero(losses <= settings.tolerance * losses[0])
    return Descent(
        lr=lr,
        momentum=momentum,
        limit=task.max_stable_lr(momentum=momentum),
        theta=theta,
        losses=losses,
        kind=kind_of_path(theta, losses),
        expected=expected_kind(task, lr, momentum),
        deviation=float(np.abs((theta - exact) / size).max()),
        reached=int(within[0]) if within.size else None,
    )


def kind_of_path(theta: Float64Array, losses: Float64Array) -> Kind:
    """How a path [steps + 1, d] behaves, from the path alone.

    It diverges if its loss still grows at the end: the largest one of the last quarter is 0.1 % above that of the
    quarter before (momentum can raise it at first even if it stays bounded). It oscillates if a coordinate passes
    through 0 more than once, and converges otherwise.

    >>> path = np.array([[1.0], [-0.5], [0.25]])
    >>> kind_of_path(path, path[:, 0] ** 2), kind_of_path(abs(path), path[:, 0] ** 2)
    ('oscillates', 'converges')
    """
    quarter = max(len(losses) // 4, 1)
    if not np.isfinite(losses).all() or losses[-quarter:].max() > 1.001 * losses[-2 * quarter : -quarter].max():
        return "diverges"
    signs = np.sign(theta)
    return "oscillates" if ((signs[1:] * signs[:-1]) < 0).sum(axis=0).max() > 1 else "converges"


def expected_kind(task: NoisyQuadratic, lr: float, momentum: float) -> Kind:
    """From the eigenvalues r of a step, r^2 - (1 + m - lr h) r + m = 0.

    Some |r| > 1 diverges, a negative or complex r oscillates.

    >>> task = NoisyQuadratic([1.0], [0.0])
    >>> [expected_kind(task, lr, 0.0) for lr in (0.5, 1.5, 2.5)]
    ['converges', 'oscillates', 'diverges']
    """
    if lr > task.max_stable_lr(momentum=momentum) * (1 + 1e-12):
        return "diverges"
    middle = 1 + momentum - lr * task.curvature
    return "oscillates" if ((middle**2 < 4 * momentum) | (middle < 0)).any() else "converges"


def _curves(descents: list[Descent]) -> list[Diagram]:
    diagrams = []
    for momentum in dict.fromkeys(one.momentum for one in descents):
        lines = []
        for one in descents:
            if one.momentum == momentum:
                kept = thinned(len(one.losses), evenly=True)
                losses = [float(loss) if 0 < loss < np.inf else None for loss in one.losses[kept]]
                lines.append(Line(f"rate {one.lr:g}: {one.kind}", kept.tolist(), losses))
        diagrams.append(
            Diagram(
                f"loss_over_steps_momentum_{momentum:g}".replace(".", "_"),
                f"Loss over steps, momentum {momentum:g}",
                Axis("steps"),
                Axis("loss", log=True),
                tuple(lines),
            )
        )
    return diagrams


def _landscapes(task: NoisyQuadratic, descents: list[Descent]) -> list[Any]:
    """Paths that stay near, over a landscape of two coordinates; none for tasks of another number."""
    if len(task.curvature) != 2:
        return []
    h = (float(task.curvature[0]), float(task.curvature[1]))
    drawn = []
    for momentum in dict.fromkeys(one.momentum for one in descents):
        kept = [one for one in descents if one.momentum == momentum and one.losses.max() <= 2 * one.losses[0]]
        if kept:
            # Near the limit a path crosses the landscape in every step: a few of them show how.
            paths = {
                f"rate {one.lr:g}: {one.kind}": one.theta[: _CROSSINGS if one.lr > one.limit / 2 else None]
                for one in kept
            }
            name = f"landscape_momentum_{momentum:g}".replace(".", "_")
            caption = f"Above half of the limit the first {_CROSSINGS} points."
            drawn.append(landscape(h, paths, name=name, title=f"Paths at momentum {momentum:g}", caption=caption))
    return drawn


def _table(descents: list[Descent], settings: Settings) -> Table:
    rows = [
        (
            f"{one.momentum:g}", f"{one.lr:.4g}", f"{one.lr / one.limit:.3g}", one.kind, one.expected,
            f"{one.losses[-1] / one.losses[0]:.3g}", "never" if one.reached is None else f"{one.reached:,}",
        )
        for one in descents
    ]  # fmt: skip
    headers = (
        "momentum",
        "rate",
        "of limit",
        "measured",
        "theory",
        "loss end/start",
        f"steps to {settings.tolerance:g}",
    )
    return Table(f"{len(descents[0].losses) - 1:,} steps of gradient descent on a quadratic", headers, rows)


def _sentences(task: NoisyQuadratic, descents: list[Descent], settings: Settings) -> list[str]:
    limits = " and ".join(f"{one.limit:g} at momentum {one.momentum:g}" for one in
                          {one.momentum: one for one in descents}.values())  # fmt: skip
    as_expected = [one for one in descents if one.kind == one.expected]
    sentences = [f"Gradient descent is stable up to a learning rate of {limits}; the largest curvature is "
                 f"{task.curvature.max():g}."]  # fmt: skip
    for kind in ("converges", "oscillates", "diverges"):
        rates = [f"{one.lr:.4g}" for one in descents if one.kind == kind and one.momentum == descents[0].momentum]
        if rates:
            sentences.append(f"At momentum {descents[0].momentum:g} it {kind} with rate {', '.join(rates)}.")
    sentences.append(
        f"Theory is right about {len(as_expected)} of {len(descents)} runs: they behave as the eigenvalues of a step "
        "predict."
    )
    sentences += [
        f"Theory is wrong at rate {one.lr:.4g} and momentum {one.momentum:g}: the run {one.kind}, theory predicts that "
        f"it {one.expected}."
        for one in descents
        if one.kind != one.expected
    ]
    if reached := [one for one in descents if one.reached is not None]:
        fastest = min(reached, key=lambda one: one.reached or 0)
        sentences.append(
            f"Rate {fastest.lr:.4g} with momentum {fastest.momentum:g} is the fastest: it reaches "
            f"{settings.tolerance:g} of the first loss in {fastest.reached} steps."
        )
    sentences.append(f"Every path follows its closed form to {max(one.deviation for one in descents):.1g}.")
    return sentences


def _numbers(one: Descent) -> dict[str, Any]:
    return {
        "lr": one.lr,
        "momentum": one.momentum,
        "limit": one.limit,
        "kind": one.kind,
        "expected": one.expected,
        "steps_to_tolerance": one.reached,
        "final_loss": float(one.losses[-1]),
        "deviation_from_closed_form": one.deviation,
    }
