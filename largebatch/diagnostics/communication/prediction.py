"""The step time on more ranks than were measured, from latency and bandwidth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from largebatch.diagnostics.communication.costs import TransferFit

Algorithm = Literal["ring", "tree"]


@dataclass(frozen=True)
class StepPrediction:
    """A step on `num_ranks` ranks, each with as many samples as in the measurement.

    Attributes:
        num_ranks: of the job.
        algorithm: the faster one of ring and tree.
        total_s: all-reduces of all parts of the gradient, one after another.
        exposed_s: the part of it after the last gradient.
        step_s: the whole step.
    """

    num_ranks: int
    algorithm: Algorithm
    total_s: float
    exposed_s: float
    step_s: float

    @property
    def efficiency(self) -> float:
        """Samples per second and rank, relative to a step without communication."""
        return 1 - self.exposed_s / self.step_s if self.step_s > 0 else 1.0


def predict_step(
    fit: TransferFit,
    *,
    measured_ranks: int,
    num_ranks: int,
    num_bytes: Sequence[int],
    lead_s: Sequence[float],
    computing_s: float,
) -> StepPrediction:
    """The step on `num_ranks` ranks, from all-reduces that were timed on `measured_ranks` over the same kind of link.

    The all-reduces of the measurement are taken for rings, as they are on few ranks, which gives the seconds per
    message and per byte of one link. Of them the two algorithms make on p ranks, for n bytes:

    - ring: 2 (p - 1) messages of n / p bytes one after another (Patarasuk and Yuan 2009, section 3);
    - tree: 2 log2 p messages one after another, and 2 n bytes over each link, pipelined (Sanders, Speck and Traff 2009,
      "Two-tree algorithms for full bandwidth broadcast, reduction and scan").

    Computation is taken to last as long as without communication. Ranks of one node with faster links, and stragglers,
    which grow with ranks, are not in it.

    Args:
        fit: of the all-reduces on `measured_ranks`.
        measured_ranks: 2 or more.
        num_ranks: 2 or more.
        num_bytes: of each part of the gradient, in the order in which they are ready.
        lead_s: from the moment at which each part is ready to the last gradient, likewise.
        computing_s: a step without communication.

    >>> fit = TransferFit(2.0, 1.0, (2.0, 2.0), (1.0, 1.0))  # on 2 ranks: 1 s a message, 1 s a byte
    >>> predict_step(fit, measured_ranks=2, num_ranks=4, num_bytes=[4], lead_s=[0.0], computing_s=20.0)
    StepPrediction(num_ranks=4, algorithm='ring', total_s=12.0, exposed_s=12.0, step_s=32.0)
    """
    message_s, s_per_byte = fit.ring(measured_ranks)
    hops = 2 * (num_ranks - 1)
    lines: dict[Algorithm, tuple[float, float]] = {
        "ring": (hops * message_s, hops / num_ranks * s_per_byte),
        "tree": (2 * math.log2(num_ranks) * message_s, 2 * s_per_byte),
    }
    found = []
    for algorithm, (latency_s, per_byte) in lines.items():
        transfers = [max(latency_s + size * per_byte, 0.0) for size in num_bytes]
        exposed_s = exposed_seconds(transfers, lead_s)
        found.append(StepPrediction(num_ranks, algorithm, sum(transfers), exposed_s, computing_s + exposed_s))
    return min(found, key=lambda one: one.step_s)


def exposed_seconds(transfer_s: Sequence[float], lead_s: Sequence[float]) -> float:
    """Seconds from the last gradient to the end of the last all-reduce; they follow each other.

    Args:
        transfer_s: of the all-reduce of each part.
        lead_s: from the moment at which each part is ready to the last gradient.

    >>> exposed_seconds([2.0, 1.0], [3.0, 0.0]), exposed_seconds([5.0, 1.0], [3.0, 0.0])  # done at -1; at +2
    (1.0, 3.0)
    """
    end = -math.inf
    for seconds, lead in zip(transfer_s, lead_s, strict=True):
        end = max(end, -lead) + seconds
    return max(end, 0.0)
