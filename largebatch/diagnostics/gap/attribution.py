"""Attribute a change of the loss to single changes of a run, by runs that differ in one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from largebatch.diagnostics.intervals import Array, Interval, mean_interval

Changes = frozenset[str]
Order = tuple[str, ...]


@dataclass(frozen=True)
class Effect:
    """What one change adds to the loss; positive means worse.

    Attributes:
        name: of the change; of all changes together `total`.
        mean: over seeds, with Student's 95 % interval.
        by_seed: of every seed, [n].
        p: two-sided p value of an effect of 0 (Student's t); None without an interval.
        by_order: mean effect in each order of the changes, by order: their spread is the interaction of the changes.
    """

    name: str
    mean: Interval
    by_seed: Array
    p: float | None
    by_order: Mapping[Order, float]

    @property
    def direction(self) -> int:
        """1: worse, -1: better, 0: the seeds cannot tell."""
        return 1 if self.mean.low > 0 else -1 if self.mean.high < 0 else 0


@dataclass(frozen=True)
class Attribution:
    """A change of the loss and its parts.

    Attributes:
        parts: one per change. The parts of a seed add up to its total, and so do the means.
        total: all changes together.
        orders: that the parts are means over.
        left_out: orders that pass a run whose loss is not finite in some seed.
    """

    parts: tuple[Effect, ...]
    total: Effect
    orders: tuple[Order, ...]
    left_out: tuple[Order, ...]


def attribute(values: Mapping[Changes, Sequence[float]], orders: Sequence[Order]) -> Attribution:
    """Split the loss that all changes add into parts: the mean over `orders` of what a change adds to those before it.

    In each order the parts telescope, f(a) - f() and f(a, b) - f(a) make f(a, b) - f(), so every mean over orders adds
    up exactly. Over all orders it is the Shapley value. Over the orders in which some changes come after others it is
    the Shapley value under precedence constraints: the part of a change that only makes sense after others.

    Seeds are pairs: a seed has the same initial weights and order of samples under all changes, so that the spread is
    that of differences within a seed.

    Args:
        values: loss of each seed after each set of changes that an order passes, [n]; all the same seeds.
        orders: sequences of all changes.

    Raises:
        ValueError: without an order, for a set of changes without values, other numbers of seeds, or if no order has
            finite losses throughout.

    Source: Shapley 1953, "A value for n-person games"; Faigle and Kern 1992, "The Shapley value for cooperative games
    under precedence constraints".

    >>> loss = {frozenset(): [1.0], frozenset("a"): [1.5], frozenset("b"): [1.25], frozenset("ab"): [3.0]}
    >>> [part.mean.value for part in attribute(loss, [("a", "b"), ("b", "a")]).parts]
    [1.125, 0.875]
    """
    table = {changes: np.asarray(one, dtype=np.float64) for changes, one in values.items()}
    _check(table, orders)
    whole = [order for order in orders if all(np.isfinite(table[one]).all() for one in passed(order))]
    if not whole:
        raise ValueError("every order passes a run that ended without a finite loss. Nothing can be attributed.")
    steps = {order: _steps(table, order) for order in whole}
    # Each part by the order of the first sequence: it is the one that people read.
    parts = tuple(_effect(name, {order: steps[order][name] for order in whole}) for name in whole[0])
    everything = frozenset(whole[0])
    total = _effect("total", {whole[0]: table[everything] - table[frozenset()]})
    left_out = tuple(order for order in orders if order not in whole)
    return Attribution(parts, total, tuple(whole), left_out)


def passed(order: Order) -> list[Changes]:
    """The sets of changes that an order passes.

    >>> [sorted(one) for one in passed(("b", "a"))]
    [[], ['b'], ['a', 'b']]
    """
    return [frozenset(order[:count]) for count in range(len(order) + 1)]


def _steps(table: Mapping[Changes, Array], order: Order) -> dict[str, Array]:
    sets = passed(order)
    return {name: table[after] - table[before] for name, before, after in zip(order, sets, sets[1:], strict=False)}


def _effect(name: str, by_order: Mapping[Order, Array]) -> Effect:
    by_seed = np.mean(list(by_order.values()), axis=0)
    mean = mean_interval(by_seed.tolist())
    return Effect(
        name, mean, by_seed, _p_value(by_seed, mean), {key: float(one.mean()) for key, one in by_order.items()}
    )


def _p_value(by_seed: Array, mean: Interval) -> float | None:
    from scipy.special import stdtr

    if math.isnan(mean.low):
        return None
    error = float(np.std(by_seed, ddof=1)) / math.sqrt(len(by_seed))
    return 2 * float(stdtr(len(by_seed) - 1, -abs(mean.value) / error))


def _check(table: Mapping[Changes, Array], orders: Sequence[Order]) -> None:
    if not orders or len({frozenset(order) for order in orders}) > 1 or any(len(set(one)) < len(one) for one in orders):
        raise ValueError(f"orders {list(orders)}: give one or more sequences of the same changes, each once.")
    if missing := {one for order in orders for one in passed(order)} - table.keys():
        raise ValueError(f"no losses after {sorted(map(sorted, missing))}: every set that an order passes needs them.")
    if len({one.shape for one in table.values()}) > 1 or any(one.ndim != 1 or not len(one) for one in table.values()):
        raise ValueError("all sets of changes need one loss for each of the same seeds.")
