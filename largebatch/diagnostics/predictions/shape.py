"""How a batch is cut up: what the time of a step and the memory of a process depend on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One rank's part of a global batch.

    Attributes:
        samples: of a rank per step, on the rank with the most.
        micro_batches: that they are computed in.
        micro_batch_size: of the largest one.
    """

    samples: int
    micro_batches: int
    micro_batch_size: int

    @property
    def time_terms(self) -> tuple[float, float, float]:
        """Terms of the time of a step: per micro-batch, per step, per sample."""
        return float(self.micro_batches), 1.0, float(self.samples)

    @property
    def memory_terms(self) -> tuple[float, float]:
        """Terms of the memory of a process: of the process, per sample of a micro-batch."""
        return 1.0, float(self.micro_batch_size)


def shape_of(global_batch_size: int, ranks: int, most: int | None) -> Shape:
    """The largest rank's part of a batch with micro-batches of `most` samples at most; None: without a limit.

    >>> shape_of(100, 2, 16), shape_of(100, 2, None)
    (Shape(samples=50, micro_batches=4, micro_batch_size=16), Shape(samples=50, micro_batches=1, micro_batch_size=50))
    """
    samples = -(-global_batch_size // ranks)
    micro = min(samples, most or samples)
    return Shape(samples, -(-samples // micro), micro)
