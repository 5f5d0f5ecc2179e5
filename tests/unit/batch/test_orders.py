"""Sequential, weighted and own orders: pure functions of (seed, position)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largebatch.batch import SampleOrder, SequentialOrder, WeightedOrder
from largebatch.batch.orders import OwnOrder, require_pure_order

pytestmark = pytest.mark.quick
WEIGHTS = [0.0, 1.0, 3.0, 0.0, 4.0, 0.0]


def test_weighted_draws_have_their_frequencies_and_never_a_weight_of_zero():
    ids = WeightedOrder(6, seed=1, weights=WEIGHTS).ids_at(np.arange(80_000))
    counts = np.bincount(ids, minlength=6)
    assert counts[[0, 3, 5]].tolist() == [0, 0, 0]
    for sample, share in ((1, 1 / 8), (2, 3 / 8), (4, 1 / 2)):
        assert abs(counts[sample] / 80_000 - share) < 5 * (share * (1 - share) / 80_000) ** 0.5
    pairs = np.bincount(6 * ids[:-1] + ids[1:], minlength=36).reshape(6, 6) / 79_999  # neighbours are independent
    assert np.abs(pairs[np.ix_([1, 2, 4], [1, 2, 4])] - np.outer([1, 3, 4], [1, 3, 4]) / 64).max() < 0.008


def test_a_draw_depends_on_seed_and_position_alone():
    order, positions = WeightedOrder(6, 7, WEIGHTS), np.array([5, 10**12, 0, 3])
    together = order.ids_at(positions).tolist()
    assert together == [order.ids_at(np.array([one]))[0] for one in positions]
    assert order.ids_at(np.arange(50)).tolist() != WeightedOrder(6, 8, WEIGHTS).ids_at(np.arange(50)).tolist()
    assert order.draws_at(positions).tolist() == positions.tolist(), "a repeated sample is changed anew"


def test_the_largest_draw_stays_inside(monkeypatch: pytest.MonkeyPatch):
    """A uniform number just below 1 times the sum may be rounded up to the sum."""
    monkeypatch.setattr("largebatch.batch.orders.keyed_uniforms", lambda *_: np.array([[1.0], [0.0]]))
    assert WeightedOrder(6, 0, WEIGHTS).ids_at(np.arange(2)).tolist() == [4, 1]


def test_weights_may_be_a_file(tmp_path: Path):
    np.save(tmp_path / "w.npy", np.array(WEIGHTS, dtype=np.float32))
    (tmp_path / "w.txt").write_text("\n".join(map(str, WEIGHTS)))
    positions, given = np.arange(40), WeightedOrder(6, 0, WEIGHTS)
    for name in ("w.npy", "w.txt"):
        assert (WeightedOrder(6, 0, str(tmp_path / name)).ids_at(positions) == given.ids_at(positions)).all()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], r"weights: \[2\] numbers for 6 samples"),
        ([0.0] * 6, "from 0.0 to 0.0"),
        ([1.0, -1.0, 1.0, 1.0, 1.0, 1.0], "from -1.0 to 1.0"),
        ([1.0, float("nan"), 1.0, 1.0, 1.0, 1.0], "finite, 0 or more"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights: list[float], message: str):
    with pytest.raises(ValueError, match=message):
        WeightedOrder(6, 0, weights)


class Fixed:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def ids_at(self, positions: Any) -> Any:
        return self.answer(positions)


@pytest.mark.parametrize("order", [SampleOrder(7, 3), SequentialOrder(7), WeightedOrder(6, 1, WEIGHTS)])
def test_ours_are_pure(order: Any):
    require_pure_order(order, batch_size=4)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda positions: positions[::-1] % 7, "Fixed.ids_at is no function of the position"),
        (lambda positions: np.random.default_rng().integers(7, size=len(positions)), "is no function of the position"),
        (lambda positions: positions % 8, "returned ids from 0 to 7, and the training set has 0 to 6"),
        (lambda positions: positions % 7 - 1, "ids from -1 to"),
        (lambda positions: positions[:1] % 7, r"returned \[1\] int64 for"),
        (lambda positions: (positions % 7).astype(float), "float64 for"),
    ],
)
def test_an_own_order_that_is_none_is_refused(answer: Any, message: str):
    with pytest.raises(ValueError, match=message):
        require_pure_order(OwnOrder(7, Fixed(answer)), batch_size=5)
