"""The 1/B law in a run: gradient variance over groups of micro-batches, averaged over steps."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from largebatch.diagnostics.noise.variance_law import Slope, jackknifed_slope

_NUM_BATCHES = 10


@dataclass(frozen=True)
class Trend:
    """Variance over the batch size in the latest measurements.

    Attributes:
        variances: batch size -> variance of the mean gradient of so many samples; may be negative while it is hardly
            known.
        slope: of log variance over log B; None with fewer than 10 measurements, or where a variance is not above 0.
    """

    variances: dict[int, float]
    slope: Slope | None


@dataclass
class VarianceTrend:
    """Collects mean |g_B|^2 of the nested groups of a step, for several B, and estimates the variance at each.

    With m_B the mean squared norm over groups of B samples, and A the largest B,

        V_B = (m_B - m_A) (1/B) / (1/B - 1/A)

    has the expectation tr(Sigma)/B: |G|^2, which all of them contain, cancels. Drawn without replacement from D samples
    all V_B come out D/(D - 1) times too large, which is taken back and leaves the slope alone. Neighbouring steps are
    alike, so the slope's interval rests on 10 consecutive batches of measurements, by the jackknife.

    Attributes:
        num_samples: D; None: independent draws.
        window: measurements that count; older ones are forgotten.
    """

    num_samples: int | None = None
    window: int = 200
    _sizes: tuple[int, ...] = ()
    _rows: deque[list[float]] = field(default_factory=deque)

    def add(self, batch_sizes: Sequence[int], mean_sq_norms: Sequence[float]) -> None:
        """Take the measurement of a step; one that is not finite is left out, other sizes than before start afresh.

        Raises:
            ValueError: for fewer than 2 sizes, or sizes that do not ascend.
        """
        sizes = tuple(batch_sizes)
        if len(sizes) < 2 or any(small >= large for small, large in itertools.pairwise(sizes)):
            raise ValueError(f"batch_sizes={list(sizes)}: a difference takes 2 or more, in ascending order.")
        if sizes != self._sizes:
            self._sizes = sizes
            self._rows.clear()
        if all(math.isfinite(value) for value in mean_sq_norms):
            share = 1.0 if self.num_samples is None else (self.num_samples - 1) / self.num_samples
            largest, whole = sizes[-1], mean_sq_norms[-1]
            self._rows.append(
                [
                    share * (mean - whole) / (1 - size / largest)
                    for size, mean in zip(sizes[:-1], mean_sq_norms[:-1], strict=True)
                ]
            )
            while len(self._rows) > self.window:
                self._rows.popleft()

    def state(self) -> dict[str, Any]:
        """The measurements that count, as plain values."""
        return {"sizes": list(self._sizes), "rows": [list(row) for row in self._rows]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up where `state` left off; of more than the window the newest count."""
        self._sizes = tuple(state["sizes"])
        self._rows = deque((list(row) for row in state["rows"]), maxlen=self.window)

    def estimate(self) -> Trend | None:
        """The trend now; None before the first measurement."""
        if not self._rows:
            return None
        rows = np.array(self._rows)
        sizes = self._sizes[:-1]
        variances = dict(zip(sizes, rows.mean(axis=0).tolist(), strict=True))
        if len(rows) < _NUM_BATCHES or len(sizes) < 2:
            return Trend(variances, None)
        size = len(rows) // _NUM_BATCHES
        batches = rows[len(rows) - _NUM_BATCHES * size :].reshape(_NUM_BATCHES, size, -1).mean(axis=1)
        return Trend(variances, jackknifed_slope(batches, np.log(np.array(sizes, dtype=np.float64))))
