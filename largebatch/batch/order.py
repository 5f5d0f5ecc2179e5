"""Sample order: the sample ids of the batch at a given position.

The order is a function of (seed, samples seen) and does not depend on the topology. It is computed, not stored: a
permutation array of 10^9 samples would take 8 GB on every rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from largebatch.batch.random_keys import mix64, stream_key

Int64Array = npt.NDArray[np.int64]

# Fewer than 14 rounds leave a bias in which pairs of samples are neighbours, measured on sets of 4 to 10 samples.
_NUM_ROUNDS = 16


@dataclass(frozen=True)
class SampleOrder:
    """An endless sequence of sample ids: one shuffle of `range(num_samples)` after another.

    Position p lies in epoch `p // num_samples`; each epoch is a permutation of all ids, keyed by (seed, epoch). A batch
    may span two epochs: no sample is dropped or repeated at the boundary.

    The permutation is a Feistel network over the mixed radix a x b >= num_samples, a ~ b, with modular addition
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Cycle walking brings back the fewer than
    2 sqrt(num_samples) points that land outside. Memory is O(1) in `num_samples`, time O(1) per id.

    >>> order = SampleOrder(num_samples=5, seed=0)
    >>> sorted(order.ids(0, 5).tolist())
    [0, 1, 2, 3, 4]
    >>> bool((order.ids(3, 4) == order.ids(0, 7)[3:]).all())
    True
    """

    num_samples: int
    seed: int = 0
    _radices: tuple[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.num_samples < 2**62:
            raise ValueError(
                f"num_samples={self.num_samples}: a sample order holds 1 to 2^62 - 1 samples. Is the data set empty?"
            )
        left = math.isqrt(self.num_samples - 1) + 1
        object.__setattr__(self, "_radices", (left, -(-self.num_samples // left)))

    def ids(self, position: int, count: int) -> Int64Array:
        """Sample ids at the `count` positions from `position` on, int64 [count].

        Raises:
            ValueError: if `position` or `count` is negative.
        """
        return self.ids_at(self._positions(position, count))

    def epochs(self, position: int, count: int) -> Int64Array:
        """Epoch of each of the `count` positions from `position` on, int64 [count]."""
        return self._positions(position, count) // self.num_samples

    def ids_at(self, positions: Int64Array) -> Int64Array:
        """Sample ids at any positions, int64 [n]. One call for many short slices is much faster than many calls."""
        epochs = positions // self.num_samples
        ids = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            chosen = np.flatnonzero(epochs == epoch)
            ids[chosen] = self._permute(positions[chosen] - epoch * self.num_samples, epoch)
        return ids

    def __iter__(self) -> NoReturn:
        raise TypeError(
            "A SampleOrder has no end, and its ids belong to positions. For a DataLoader: sampler=OrderSampler(order), "
            "or batch_sampler=GlobalBatchSampler(order, plan); for a loop: GlobalBatches(dataset, total)."
        )

    def draws_at(self, positions: Int64Array) -> Int64Array:
        """Epochs, in each of which a sample comes once: they key its random changes."""
        return positions // self.num_samples

    @staticmethod
    def _positions(position: int, count: int) -> Int64Array:
        if position < 0 or count < 0:
            raise ValueError(f"position={position}, count={count}: both count samples from the start of the run, >= 0.")
        return np.arange(position, position + count, dtype=np.int64)

    def _permute(self, indices: Int64Array, epoch: int) -> Int64Array:
        keys = mix64(
            np.arange(1, _NUM_ROUNDS + 1, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
            + np.uint64(stream_key(self.seed, "order", epoch))
        )
        values = self._encrypt(indices.astype(np.uint64), keys)
        outside = np.flatnonzero(values >= self.num_samples)
        while outside.size:  # a cycle that starts inside comes back inside, so the walk ends
            values[outside] = self._encrypt(values[outside], keys)
            outside = outside[values[outside] >= self.num_samples]
        return values.astype(np.int64)

    def _encrypt(self, values: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        radix_left, radix_right = (np.uint64(radix) for radix in self._radices)
        left, right = values % radix_left, values // radix_left
        for number, key in enumerate(keys):
            radix = radix_left if number % 2 == 0 else radix_right
            # High 32 bits times a radix below 2^32, over 2^32: a draw from range(radix) without a slow division.
            draw = ((mix64(right + key) >> np.uint64(32)) * radix) >> np.uint64(32)
            left += draw
            left -= radix * (left >= radix)
            left, right = right, left
        # An even number of rounds: both halves are back in their own radix.
        return right * radix_left + left


class StreamOrder(SampleOrder):
    """The order of a stream: the sample at a position has the position as its id.

    >>> StreamOrder(num_samples=5).ids(3, 4).tolist(), StreamOrder(num_samples=5).epochs(3, 4).tolist()
    ([3, 4, 5, 6], [0, 0, 1, 1])
    """

    def ids_at(self, positions: Int64Array) -> Int64Array:
        """The positions."""
        return positions
