"""Parts of a loss add up, each planted cause is found alone, and the intervals cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from largebatch.diagnostics.gap.attribution import attribute, passed
from largebatch.experiments.bench.attribution import ORDERS, PLANTED, Settings, coverage

ABC = [("a", "b", "c"), ("b", "a", "c"), ("c", "b", "a")]


def table(orders, count: int = 4) -> dict[frozenset[str], np.ndarray]:
    generator = np.random.default_rng(0)
    return {changes: generator.standard_normal(count) for order in orders for changes in passed(order)}


def test_parts_of_every_seed_add_up_and_are_means_of_what_a_change_adds():
    values = table(ABC)
    found = attribute(values, ABC)
    sums = np.sum([part.by_seed for part in found.parts], axis=0)
    whole = values[frozenset("abc")] - values[frozenset()]
    np.testing.assert_allclose(sums, whole, rtol=0, atol=1e-14)
    assert math.isclose(math.fsum(part.mean.value for part in found.parts), found.total.mean.value, abs_tol=1e-14)
    alone = values[frozenset("a")] - values[frozenset()]
    after_b = values[frozenset("ab")] - values[frozenset("b")]
    last = values[frozenset("abc")] - values[frozenset("bc")]
    np.testing.assert_allclose(found.parts[0].by_seed, (alone + after_b + last) / 3, rtol=0, atol=1e-14)
    assert [part.name for part in found.parts] == ["a", "b", "c"]


def test_p_and_interval_are_those_of_a_paired_t_test():
    from scipy.stats import ttest_rel

    values = table([("a",)], 5)
    found = attribute(values, [("a",)]).parts[0]
    theirs = ttest_rel(values[frozenset("a")], values[frozenset()])
    assert math.isclose(found.p or 0.0, theirs.pvalue, rel_tol=1e-9)
    low, high = theirs.confidence_interval(0.95)
    np.testing.assert_allclose([found.mean.low, found.mean.high], [low, high], rtol=1e-9)


def test_an_order_through_a_run_that_diverged_is_left_out_and_named():
    values = table([*ABC])
    values[frozenset("b")][1] = math.nan
    found = attribute(values, ABC)
    assert (found.orders, found.left_out) == ((ABC[0], ABC[2]), (ABC[1],))
    assert all(np.isfinite(part.by_seed).all() for part in found.parts)
    values[frozenset("abc")][0] = math.inf
    with pytest.raises(ValueError, match="every order passes a run that ended without a finite loss"):
        attribute(values, ABC)


@pytest.mark.parametrize(
    ("orders", "message"),
    [([], "sequences of the same changes"), ([("a",), ("b",)], "sequences of the same changes"),
     ([("a", "a")], "each once"), ([("a", "x")], r"no losses after \[\['a', 'x'\]\]")],
)  # fmt: skip
def test_wrong_orders_are_refused(orders, message: str):
    with pytest.raises(ValueError, match=message):
        attribute(table(ABC), orders)


def test_different_numbers_of_seeds_are_refused():
    with pytest.raises(ValueError, match="the same seeds"):
        attribute(table(ABC) | {frozenset("a"): [1.0]}, ABC)


@pytest.mark.parametrize("name", [name for name, one in PLANTED.items() if one.cause])
def test_a_cause_planted_alone_has_all_of_the_difference(name: str):
    planted = PLANTED[name]
    found = planted.expected()
    shares = {part.name: part.mean.value / found.total.mean.value for part in found.parts}
    assert shares.pop(planted.cause) == pytest.approx(1, abs=0.005)
    assert max(map(abs, shares.values())) < 0.005


def test_intervals_hold_the_truth_in_95_percent_where_all_causes_act():
    repetitions = 300
    rows = coverage(PLANTED["all three"], Settings(repetitions=repetitions, seeds=3))
    assert [name for name, *_ in rows] == [*ORDERS[0], "total"]
    room = 4 * math.sqrt(0.95 * 0.05 / repetitions)
    for _, truth, mean, covered in rows:
        assert abs(covered - 0.95) < room
        assert mean == pytest.approx(truth, rel=0.1)
