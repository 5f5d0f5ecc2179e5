"""The numeric guard: what becomes of a step whose loss or gradient is not a number, or far above all recent ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from largebatch.diagnostics.outliers import RecentValues

Policy = Literal["log", "skip", "rollback"]
Action = Literal["none", "log", "skip", "rollback"]


@dataclass(frozen=True)
class GuardDecision:
    """The guard's decision on one step.

    Attributes:
        action: that was taken: none of a good step and of an overflow; `skip` and `rollback` left the update out.
        loss, grad_norm: mean loss, and L2 norm of the gradient before clipping, of the global batch.
        loss_limit, grad_norm_limit: above which they are bad; infinite where there is no limit.
        is_overflow: whether the gradient overflowed in fp16, which is the loss scaler's business.
    """

    action: Action
    loss: float
    grad_norm: float
    loss_limit: float
    grad_norm_limit: float
    is_overflow: bool = False

    @property
    def is_bad(self) -> bool:
        """Whether the loss or the gradient was bad."""
        return self.action != "none"

    @property
    def skips(self) -> bool:
        """Whether the update is left out."""
        return self.action in ("skip", "rollback")


@dataclass
class Counts:
    """Counts of steps, by what the guard did.

    >>> Counts(bad=2, skipped=2).row()
    {'guard/bad': 2, 'guard/skipped': 2, 'guard/rolled_back': 0, 'guard/overflows': 0}
    """

    bad: int = 0
    skipped: int = 0
    rolled_back: int = 0
    overflows: int = 0

    def row(self) -> dict[str, float | int | str]:
        """Under the names of logged rows."""
        return {f"guard/{name}": count for name, count in asdict(self).items()}


class Guard:
    """Judges every step before its update, by numbers that all ranks have in common: so all of them decide alike.

    A step is bad if its loss or gradient norm is not finite, or above the limit that the good steps before it set (see
    `RecentValues`). Bad steps do not enter that series. What happens then:

    - `log`: it is counted, and the run goes on as without a guard.
    - `skip`: the update is left out. Weights, optimizer state and buffers, such as running statistics of batch norm,
      are those of before the step; the batch counts as seen, so data order and learning rate go on behind it.
    - `rollback`: the same, and weights, optimizer state and buffers become those of the newest checkpoint. Before there
      is one the batch is only skipped.

    Under fp16 an infinite gradient of a finite loss is an everyday event, by which the loss scaler finds its scale: it
    is counted apart and is neither good nor bad.

    Args:
        policy: as above.
        window: good steps that are remembered, 20 or more.
        threshold: MADs above the median; None: only what is not finite is bad.
        most_in_a_row: after so many bad steps without a good one between them a guard that acts gives up.

    Attributes:
        counts: since the run began, before a resume included.

    Raises:
        ValueError: if `window`, `threshold` or `most_in_a_row` is out of range.
    """

    def __init__(self, policy: Policy, *, window: int, threshold: float | None, most_in_a_row: int) -> None:
        if most_in_a_row < 1:
            raise ValueError(f"most_in_a_row={most_in_a_row}: a guard gives up after one bad step at the earliest.")
        self.policy = policy
        self.counts = Counts()
        self._losses = RecentValues(window=window, threshold=threshold)
        self._grad_norms = RecentValues(window=window, threshold=threshold)
        self._most_in_a_row = most_in_a_row
        self._in_a_row = 0

    @property
    def acts(self) -> bool:
        """Whether it leaves steps out, besides counting them."""
        return self.policy != "log"

    @property
    def gives_up(self) -> bool:
        """Whether too many steps in a row were bad: then it is not the batches."""
        return self.acts and self._in_a_row >= self._most_in_a_row

    def judge(self, loss: float, grad_norm: float, *, scales_loss: bool = False) -> GuardDecision:
        """Decide on a step, and remember it.

        Args:
            loss: mean over the global batch.
            grad_norm: of the global gradient, before clipping.
            scales_loss: whether a loss scaler may have made the gradient overflow.
        """
        decision = GuardDecision("none", loss, grad_norm, self._losses.limit, self._grad_norms.limit)
        if scales_loss and not math.isfinite(grad_norm) and not self._losses.is_outlier(loss):
            self.counts.overflows += 1
            return replace(decision, is_overflow=True)
        if self._losses.is_outlier(loss) or self._grad_norms.is_outlier(grad_norm):
            self._in_a_row += 1
            self.counts.bad += 1
            self.counts.skipped += self.acts
            return replace(decision, action="skip" if self.acts else "log")
        self._in_a_row = 0
        self._losses.add(loss)
        self._grad_norms.add(grad_norm)
        return decision

    def state(self) -> dict[str, Any]:
        """All that later decisions depend on, as plain values: a resumed run decides as an uninterrupted one."""
        return {
            "losses": self._losses.values(),
            "grad_norms": self._grad_norms.values(),
            "in_a_row": self._in_a_row,
            "counts": asdict(self.counts),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned. Of a larger window the newest values count."""
        self._losses.load(state["losses"])
        self._grad_norms.load(state["grad_norms"])
        self._in_a_row = state["in_a_row"]
        self.counts = Counts(**state["counts"])
