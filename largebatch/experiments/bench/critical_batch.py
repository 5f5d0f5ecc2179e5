"""`largebatch bench critical-batch`: how often the intervals of `measure critical-batch` hold a known truth."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from largebatch.diagnostics.closed_forms import NoisyQuadratic
from largebatch.diagnostics.closed_forms.branches import QuadraticBranches, point_of_run
from largebatch.diagnostics.critical_batch.branches import Crossing
from largebatch.experiments.bench.settings import at_least, setting

_CURVATURE = [2.0**-power for power in range(8)]  # of experiment=noisy_quadratic; its noise is as large
_SIZES = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_NUM_SAMPLES = 2304  # 9 steps of the largest batch
_TOLERANCE = 0.01
_LEAST, _MOST = 0.93, 0.97
_STARTS = (0, 40, 400)  # steps of a run at the smallest batch before the branches
# Momentum, rate of batch 8, rule: plain SGD, momentum, and a rule whose rate grows less than the batch.
_KINDS = ((0.0, 0.1, "linear"), (0.9, 0.02, "linear"), (0.0, 0.1, "sqrt"))


@dataclass(frozen=True)
class Settings:
    """Settings of the bench."""

    replications: int = setting(300, at_least(20), "N", "measurements from each point")
    windows: int = setting(12, at_least(4), "N", "windows of a measurement")
    evaluated: int = setting(256, at_least(1), "N", "evaluation samples of a window")
    seed: int = setting(0, at_least(0), "N", "of the samples")


def measure(settings: Settings) -> bool:
    """Print the coverage at each point; whether all lie within three standard errors of 93 to 97 %."""
    task = NoisyQuadratic(np.array(_CURVATURE), np.array(_CURVATURE))
    started, is_right = time.perf_counter(), True
    print(f"{'point':34} {'which':10} {'truth':>7} {'median':>7} {'coverage':>9}  too high, too low, open")
    counts = np.zeros(2)
    for momentum, lr, rule in _KINDS:
        for steps in _STARTS:
            point = point_of_run(task, np.ones(8), lr=lr, batch_size=_SIZES[0], num_steps=steps, momentum=momentum,
                                 seed=settings.seed)  # fmt: skip
            branches = QuadraticBranches(task, *point, momentum, lr, rule, _SIZES, _NUM_SAMPLES)
            name = f"step {steps}, momentum {momentum:g}, {rule}"
            for which, truth, found in _measured(branches, settings):
                shares = _shares(truth, found)
                error = 3 * math.sqrt(0.95 * 0.05 / len(found))
                is_right &= _LEAST - error <= shares[0] <= _MOST + error
                counts += shares[0] * len(found), len(found)
                median = np.median([math.inf if one.value is None else one.value for one in found])
                print(
                    f"{name:34} {which:10} {truth:7.1f} {median:7.1f} {shares[0]:9.1%}  "
                    + ", ".join(f"{one:.1%}" for one in shares[1:]),
                    flush=True,
                )
    print(f"all: {counts[0] / counts[1]:.1%} of {counts[1]:,.0f} intervals; {time.perf_counter() - started:.0f} s")
    return bool(is_right)


def _measured(branches: QuadraticBranches, settings: Settings) -> list[tuple[str, float, list[Crossing]]]:
    generator = np.random.default_rng(settings.seed)
    drawn = [
        branches.draw(generator, num_windows=settings.windows, num_evaluated=settings.evaluated)
        for _ in range(settings.replications)
    ]
    return [
        ("B_crit", branches.crossing(branches.halfway), [one.doubling() for one in drawn]),
        ("tolerated", branches.crossing(branches.smallest + _TOLERANCE), [one.tolerated(_TOLERANCE) for one in drawn]),
    ]


def _shares(truth: float, found: list[Crossing]) -> tuple[float, float, float, float]:
    """Shares of intervals that hold the truth, lie above it, lie below it, and have an open end."""
    ends = [(0.0 if one.low is None else one.low, math.inf if one.high is None else one.high) for one in found]
    beyond = min(truth, float(_SIZES[-1]))  # an interval that begins at the largest batch says: somewhere beyond
    above, below = (np.mean([beyond < low for low, _ in ends]), np.mean([high < truth for _, high in ends]))
    is_open = np.mean([low == 0 or high == math.inf for low, high in ends])
    return 1 - float(above + below), float(above), float(below), float(is_open)
