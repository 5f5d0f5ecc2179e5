"""Misfit of a curve of steps over the batch size, judged by its size and not by a test.

A test of lack of fit asks whether the curve is exact. No curve is, so with enough seeds every curve is rejected. The
decision that a curve supports is whether the next doubling of the batch pays. At B_crit a doubling saves a quarter of
the steps, S(2 B)/S(B) = 3/4, so the error of a curve must be well below a quarter:

- It predicts left-out batch sizes to 12.5 % in the root mean square: two standard errors are at most the saving of
  25 %.
- No batch size is off by more than 1/3, the factor 4/3 that a doubling at B_crit is worth.

The first criterion is a mean over batch sizes, not their maximum: the mean tends to the true error as batch sizes are
added, while the maximum grows with their number alone.

The table shows the percentage of simulated studies that are `supported` with 1, 3 and 20 seeds. Each row has 200
studies, made by `python -m tests.unit.diagnostics.simulated_studies` in the repository: batch sizes 8 to 1024 around
B_crit = 100, a scatter of 5 % between batch sizes by tuning and of 10 % between seeds. More seeds support a true curve
more often, and with three or more seeds more batch sizes do, too; with one seed the scatter is at the limit itself. A
wrong curve is supported in at most 8 % of studies, except for the shift by 30 %, which is within the limits.

    misfit planted                    4 batch sizes 5             8             13
    none                               43  62  85    46  65  94    43  82 100    46  94 100
    no gain beyond batch 64             6   2   0     7   4   1     2   2   0     2   2   2
    no loss below batch 24              0   0   0     0   0   0     0   0   0     0   0   0
    S ~ B^-0.5                          0   0   0     0   0   0     0   0   0     0   0   0
    steps rise again                    0   0   0     0   0   0     0   0   0     0   0   0
    optimum shifts, +30 % above 128    33  44  56    28  36  57    20  46  72    24  64  98
    optimum shifts, +100 % above 128    4   3   0     0   0   0     0   0   0     0   0   0
    one batch size +50 %                0   0   0     2   0   0     2   2   0     2   8   6
    none, tuning scatter 10 %          32  39  40    28  33  50    22  40  50    16  43  66
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from largebatch.diagnostics.critical_batch.hyperbola import Hyperbola, log_gain

MOST_LEFT_OUT = 0.125  # root mean square of the relative errors at batch sizes that were left out
MOST_RESIDUAL = 1 / 3  # of the worst residual, as a factor beyond 1


@dataclass(frozen=True)
class Misfit:
    """Errors of a curve in log steps, one per batch size whose median is known; positive: more steps than the curve.

    Attributes:
        batch_sizes: ascending, [K].
        residuals: log of the median minus log of the curve through all, [K].
        left_out: the same against the curve through all others, [K].
    """

    batch_sizes: tuple[int, ...]
    residuals: tuple[float, ...]
    left_out: tuple[float, ...]

    @property
    def worst(self) -> tuple[int, float]:
        """Batch size of the largest residual, and steps over those of the curve - 1."""
        size, residual = max(zip(self.batch_sizes, self.residuals, strict=True), key=lambda pair: abs(pair[1]))
        return size, math.expm1(residual)

    @property
    def worst_left_out(self) -> float:
        """Largest relative error at a batch size that was left out, as a factor beyond 1."""
        return math.expm1(max(map(abs, self.left_out)))

    @property
    def left_out_error(self) -> float:
        """Root mean square of the errors at batch sizes that were left out, as a factor beyond 1.

        >>> round(Misfit((8, 16), (0.0, 0.0), (math.log(1.1), -math.log(1.1))).left_out_error, 6)
        0.1
        """
        return math.expm1(math.sqrt(sum(error**2 for error in self.left_out) / len(self.left_out)))

    @property
    def is_small(self) -> bool:
        """Whether the curve is close enough for a decision; see the head of this file."""
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Reasons why the misfit is not small."""
        (size, worst), found = self.worst, []
        if self.left_out_error > MOST_LEFT_OUT:
            found.append(
                f"it predicts left-out batch sizes to {_percent(self.left_out_error)} in the root mean square (at most "
                f"{100 * MOST_LEFT_OUT:g} %)"
            )
        if math.expm1(abs(math.log1p(worst))) > MOST_RESIDUAL:
            found.append(f"the curve misses batch {size:,} by {worst:+.0%} steps (at most a factor of 4/3)")
        return found

    @property
    def description(self) -> str:
        """Prediction errors as text."""
        return (
            f"predicts each left-out batch size within {_percent(self.worst_left_out)}, "
            f"{_percent(self.left_out_error)} in the root mean square"
        )


def measure_misfit(likelihood: Hyperbola, a: float, c: float) -> Misfit:
    """Errors of the best curve log S = a + log(1 + exp(c) / B), and of the curves fitted without one batch size.

    Censored medians have no error of their own, and stay in every fit.
    """
    residuals = likelihood.log_steps - a - log_gain(np.array(c), likelihood.log_sizes)
    seen = np.flatnonzero(~likelihood.censored)
    return Misfit(
        tuple(round(math.exp(size)) for size in likelihood.log_sizes[seen]),
        tuple(residuals[seen].tolist()),
        tuple(_error_without(likelihood, int(place)) for place in seen),
    )


def _error_without(likelihood: Hyperbola, place: int) -> float:
    others = np.arange(len(likelihood.log_sizes)) != place
    rest = Hyperbola(
        likelihood.log_sizes[others],
        likelihood.log_steps[others],
        likelihood.weights[others],
        likelihood.censored[others],
    )
    a, c, _ = rest.best_of_all()
    return float(likelihood.log_steps[place] - a - log_gain(np.array(c), likelihood.log_sizes[place : place + 1])[0])


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
