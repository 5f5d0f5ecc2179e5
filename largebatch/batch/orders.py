"""Other orders of samples than a shuffle: one after the other, by weights, or the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from largebatch.batch.order import Int64Array
from largebatch.batch.random_keys import keyed_uniforms, stream_key


class Order(Protocol):
    """Which sample comes at each position of a run: a pure function of (seed, position), so nothing has to be saved.

    Attributes:
        num_samples: size of the data set, and positions of one epoch, whatever the order.
    """

    @property
    def num_samples(self) -> int:
        """Size of the data set."""

    def ids_at(self, positions: Int64Array) -> Int64Array:
        """Sample ids at any positions, counted from the start of the run, int64 [n]."""

    def draws_at(self, positions: Int64Array) -> Int64Array:
        """What keys random changes of the samples there, beside their ids: different if a sample comes again."""


@dataclass(frozen=True)
class SequentialOrder:
    """The samples one after the other, and again from the first.

    >>> SequentialOrder(3).ids_at(np.arange(2, 6)).tolist()
    [2, 0, 1, 2]
    """

    num_samples: int
    seed: int = 0

    def ids_at(self, positions: Int64Array) -> Int64Array:
        """As of `Order`."""
        return positions % self.num_samples

    def draws_at(self, positions: Int64Array) -> Int64Array:
        """Epochs."""
        return positions // self.num_samples


@dataclass(frozen=True)
class WeightedOrder:
    """Independent draws with replacement: each position draws sample i with probability weights[i] / sum(weights).

    As `torch.utils.data.WeightedRandomSampler(weights, replacement=True)`, but keyed by (seed, position). An epoch is
    `num_samples` draws.

    Args:
        num_samples: size of the data set.
        seed: of the run.
        weights: one for each sample, 0 or more; or a file of them, .npy or text with one number per line.

    Raises:
        ValueError: if there is not one weight for each sample, or they are not finite, negative, or all 0.

    >>> WeightedOrder(3, weights=[0.0, 1.0, 0.0]).ids_at(np.arange(4)).tolist()
    [1, 1, 1, 1]
    """

    num_samples: int
    seed: int = 0
    weights: Sequence[float] | str = ()
    _sums: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        weights = _numbers(self.weights)
        if weights.shape != (self.num_samples,):
            raise ValueError(
                f"weights: {list(weights.shape)} numbers for {self.num_samples} samples. Give one for each sample of "
                "the training set (with data.limit, of the first ones)."
            )
        if not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() == 0:
            raise ValueError(
                f"weights: from {weights.min()} to {weights.max()}: they are finite, 0 or more, and not all 0."
            )
        object.__setattr__(self, "_sums", np.cumsum(weights))

    def ids_at(self, positions: Int64Array) -> Int64Array:
        """As of `Order`."""
        drawn = keyed_uniforms(stream_key(self.seed, "weighted order"), positions, 1)[:, 0] * self._sums[-1]
        # A product that is rounded up to the sum must not leave the last sample that has a weight.
        last = np.searchsorted(self._sums, self._sums[-1])
        return np.minimum(np.searchsorted(self._sums, drawn, side="right"), last).astype(np.int64)

    def draws_at(self, positions: Int64Array) -> Int64Array:
        """Positions: a sample may come twice in an epoch, and is to be changed anew."""
        return positions


@dataclass(frozen=True)
class OwnOrder:
    """An object of the user's with `ids_at(positions)`, whose ids are checked.

    Args:
        num_samples: size of the data set.
        order: of the user.
    """

    num_samples: int
    order: Any

    def ids_at(self, positions: Int64Array) -> Int64Array:
        """As of `Order`. Raises ValueError for ids that are no samples, or not as many as positions."""
        ids, name = np.asarray(self.order.ids_at(positions)), type(self.order).__name__
        if ids.shape != positions.shape or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"{name}.ids_at returned {list(ids.shape)} {ids.dtype} for {len(positions)} positions: one whole "
                "number for each."
            )
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.num_samples:
            raise ValueError(
                f"{name}.ids_at returned ids from {ids.min()} to {ids.max()}, and the training set has 0 to "
                f"{self.num_samples - 1}."
            )
        return ids.astype(np.int64)

    def draws_at(self, positions: Int64Array) -> Int64Array:
        """Positions: whether a sample comes twice in an epoch is not known."""
        return positions


def require_pure_order(order: Order, *, batch_size: int) -> None:
    """Raise ValueError unless the id at a position depends on it alone: asked apart and backwards, it is the same.

    Every rank asks for its own positions, and a resumed run for the later ones.
    """
    count = order.num_samples
    starts = (0, max(count - batch_size // 2, 0), 3 * count + 1)
    positions = np.unique(np.concatenate([np.arange(start, start + min(batch_size, 256)) for start in starts]))
    together = order.ids_at(positions)
    apart = np.concatenate([order.ids_at(part[::-1])[::-1] for part in np.array_split(positions, 5)[::-1]][::-1])
    moved = np.flatnonzero(together != apart)
    if len(moved):
        name, place = type(getattr(order, "order", order)).__name__, moved[0]
        raise ValueError(
            f"{name}.ids_at is no function of the position: {positions[place]} has sample {together[place]}, and "
            f"{apart[place]} when it is asked for in another call. Ranks ask for their own positions, and a resumed "
            "run for the later ones. Compute each id from (seed, position) alone: see `largebatch.batch.orders.Order`."
        )


def _numbers(weights: Sequence[float] | str) -> Any:
    if not isinstance(weights, str):
        return np.asarray(weights, dtype=np.float64)
    path = Path(weights)
    values = np.load(path) if path.suffix == ".npy" else np.loadtxt(path, ndmin=1)
    return np.asarray(values, dtype=np.float64)
