"""`largebatch bench attribution`: parts of `largebatch attribute` against the true ones, on tasks with closed forms.

Each planted task is a noisy quadratic, whose expected loss after SGD at any batch, rate and number of steps is known
exactly. So are the parts. Simulated seeds go through the estimator of the verb; counted is how often the 95 % interval
of each part holds the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from largebatch.diagnostics.closed_forms import NoisyQuadratic
from largebatch.diagnostics.closed_forms.arrays import Float64Array
from largebatch.diagnostics.gap.attribution import Attribution, Changes, attribute
from largebatch.experiments.attribution.corners import NOISE, STEPS, UNSCALED
from largebatch.experiments.bench.settings import at_least, setting

ORDERS = ((NOISE, STEPS, UNSCALED), (STEPS, NOISE, UNSCALED))
# Share of the intervals that may miss before the bench fails: of 95 %, with room for chance at 1,000 repetitions.
LEAST_COVERAGE = 0.92


@dataclass(frozen=True)
class Planted:
    """A noisy quadratic and two batch sizes at equal samples.

    Attributes:
        cause: the change that makes all of the difference; empty: all three do.
        noise: variance of the gradient of a sample, as a factor of the curvature.
        lr: rate of the small batch.
        is_linear: whether the rule is the linear one; else the rate is the same at both batches.
        num_samples: of each run at its own batch.
        small, factor: B and k.
    """

    cause: str
    noise: float
    lr: float
    is_linear: bool
    num_samples: int
    small: int = 4
    factor: int = 8

    @property
    def task(self) -> NoisyQuadratic:
        """32 coordinates, curvatures from 1 to 1/8."""
        curvature = np.repeat([1.0, 0.5, 0.25, 0.125], 8)
        return NoisyQuadratic(curvature, self.noise * curvature)

    @property
    def corners(self) -> dict[Changes, tuple[int, int, float]]:
        """Batch, steps and rate of each run, as in `experiments.attribution.corners`."""
        large = self.small * self.factor
        many, few = self.num_samples // self.small, self.num_samples // large
        scaled = self.lr * (self.factor if self.is_linear else 1)
        return {
            frozenset(): (self.small, many, self.lr),
            frozenset({NOISE}): (large, many, self.lr),
            frozenset({STEPS}): (self.small, few, scaled),
            frozenset({NOISE, STEPS}): (large, few, scaled),
            frozenset({NOISE, STEPS, UNSCALED}): (large, few, self.lr),
        }

    def expected(self) -> Attribution:
        """The true parts: of expected losses, from weights of variance 1."""
        task, ones = self.task, np.ones(32)
        values = {}
        for changes, (batch, steps, lr) in self.corners.items():
            moments = task.second_moments(ones, lr=lr, num_steps=steps, global_batch_size=batch)[-1]
            values[changes] = [0.5 * float(task.curvature @ moments)]
        return attribute(values, ORDERS)

    def simulated(self, generator: np.random.Generator, shape: tuple[int, int]) -> Mapping[Changes, Float64Array]:
        """Losses of every run, [repetitions, seeds]; the runs of a seed share their first weights."""
        task = self.task
        start = generator.standard_normal((*shape, 32))
        values = {}
        for changes, (batch, steps, lr) in self.corners.items():
            theta, noise = start.copy(), np.sqrt(task.noise_variance / batch)
            for _ in range(steps):
                theta -= lr * (task.curvature * theta + noise * generator.standard_normal(theta.shape))
            values[changes] = 0.5 * theta**2 @ task.curvature
        return values


PLANTED = {
    "fewer steps alone": Planted(STEPS, noise=1e-4, lr=0.01, is_linear=False, num_samples=256),
    "less noise alone": Planted(NOISE, noise=1.0, lr=0.5, is_linear=False, num_samples=3072),
    "unscaled rate alone": Planted(UNSCALED, noise=1e-4, lr=0.0005, is_linear=True, num_samples=256),
    "all three": Planted("", noise=1.0, lr=0.1, is_linear=True, num_samples=256),
}


@dataclass(frozen=True)
class Settings:
    """How many attributions are simulated."""

    repetitions: int = setting(1000, at_least(100), "N", "attributions of each planted task (default: 1000)")
    seeds: int = setting(3, at_least(3), "N", "seeds of each run (default: 3)")


def measure(settings: Settings) -> bool:
    """Print true and estimated parts and the coverage of their intervals; False if one covers too rarely."""
    from largebatch.records.trackers import print_table

    rows, worst = [], 1.0
    for name, planted in PLANTED.items():
        for part, truth, mean, covered in coverage(planted, settings):
            rows.append((name, part, f"{truth:+.4g}", f"{mean:+.4g}", f"{covered:.1%}"))
            worst = min(worst, covered)
    title = f"{settings.repetitions} attributions with {settings.seeds} seeds each"
    print_table(("planted", "part", "true", "mean estimate", "95 % interval holds it"), rows, title=title)
    return worst >= LEAST_COVERAGE


def coverage(planted: Planted, settings: Settings) -> list[tuple[str, float, float, float]]:
    """Name, truth, mean estimate and share of the intervals that hold the truth, of each part and the total."""
    truth = planted.expected()
    values = planted.simulated(np.random.default_rng(0), (settings.repetitions, settings.seeds))
    found = [
        attribute({changes: losses[number] for changes, losses in values.items()}, ORDERS)
        for number in range(settings.repetitions)
    ]
    rows = []
    for place, true in enumerate((*truth.parts, truth.total)):
        means = [(*one.parts, one.total)[place].mean for one in found]
        inside = sum(one.low <= true.mean.value <= one.high for one in means) / len(means)
        rows.append((true.name, true.mean.value, float(np.mean([one.value for one in means])), inside))
    return rows
