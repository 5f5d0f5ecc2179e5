"""`largebatch bench growth`: how often a batch grows by its noise scale although the next one is above the true one."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from largebatch.batch.noise_growth import GrowthRule
from largebatch.diagnostics import NoiseScaleEstimator, moments_of_step
from largebatch.experiments.bench.settings import at_least, setting

_BATCH, _NEXT, _MICRO = 32, 64, 16
_RATIOS = (0.8, 0.9, 1.0, 1.25, 1.5)  # of the true noise scale to the next batch
_CONFIRMATIONS = (1, 3, 5, 20)
_WINDOWS = (60, 200)  # of experiment=digits_noise_ramp; the default
_TOO_HIGH = 0.025  # of 95 % intervals, at one look


@dataclass(frozen=True)
class Settings:
    """Settings of the bench."""

    replications: int = setting(300, at_least(20), "N", "runs at each noise scale")
    looks: int = setting(400, at_least(20), "N", "measurements of a run; it looks after each")
    dimensions: int = setting(50, at_least(2), "N", "of the gradient, all equally noisy")
    seed: int = setting(0, at_least(0), "N", "of the measurements")


def measure(settings: Settings) -> bool:
    """Print the share of runs that grow; whether the interval is too high at one look as seldom as it says.

    Of so many runs, with five standard errors.
    """
    started, is_right = time.perf_counter(), True
    names = "".join(f"{f'{one} in a row':>13}" for one in _CONFIRMATIONS)
    print(f"runs of {settings.looks} looks that grow from {_BATCH} to {_NEXT}")
    print(f"{'window':>6} {'true':>6} {'one look':>9}{names}")
    for window in _WINDOWS:
        for ratio in _RATIOS:
            generator = np.random.default_rng(settings.seed)
            lows = [lower_ends(generator, ratio * _NEXT, window, settings) for _ in range(settings.replications)]
            above = float(np.mean([run[-1] >= ratio * _NEXT for run in lows]))
            error = math.sqrt(_TOO_HIGH * (1 - _TOO_HIGH) / len(lows))
            is_right &= above <= _TOO_HIGH + 5 * error
            shares = [np.mean([grows(run, number) for run in lows]) for number in _CONFIRMATIONS]
            row = "".join(f"{share:13.1%}" for share in shares)
            print(f"{window:6} {ratio * _NEXT:6.0f} {above:9.1%}{row}", flush=True)
    print(f"{time.perf_counter() - started:.0f} s")
    return is_right


def lower_ends(
    generator: np.random.Generator, noise_scale: float, window: int, settings: Settings
) -> NDArray[np.float64]:
    """Lower end of the interval after each measurement of a run at one place, [looks]; -inf without an interval.

    The micro-batch gradients are Gaussian about G with |G|^2 = 1 and the covariance of `noise_scale`, the same in all
    dimensions d. So with n micro-batches the trace is tr(Sigma) chi^2 / ((n - 1) d) with (n - 1) d degrees of freedom,
    and independent of the mean gradient, whose noise has tr(Sigma) / B.
    """
    dims, parts, count = settings.dimensions, _BATCH // _MICRO, settings.looks
    traces = noise_scale * generator.chisquare((parts - 1) * dims, count) / ((parts - 1) * dims)
    unit = noise_scale / (_BATCH * dims)
    squares = (1 + math.sqrt(unit) * generator.standard_normal(count)) ** 2 + unit * generator.chisquare(
        dims - 1, count
    )
    estimator, found = NoiseScaleEstimator(window), []
    for trace, square in zip(traces.tolist(), squares.tolist(), strict=True):
        weighted = (parts - 1) * trace + _BATCH * square
        estimator.add(*moments_of_step(weighted, square, num_micro_batches=parts, global_batch_size=_BATCH))
        scale = estimator.estimate()
        found.append(-math.inf if scale is None or scale.interval is None else scale.interval[0])
    return np.array(found)


def grows(lows: NDArray[np.float64], confirmations: int) -> bool:
    """Whether the rule lets the batch grow at one of these looks."""
    rule = GrowthRule((_BATCH, _NEXT), total_samples=_BATCH * len(lows) + _NEXT, confirmations=confirmations)
    in_a_row = 0
    for look, low in enumerate(lows.tolist(), start=1):
        in_a_row, total = rule.judge(in_a_row, low=low, total=_BATCH, samples_seen=_BATCH * look, since=0)
        if total is not None:
            return True
    return False
