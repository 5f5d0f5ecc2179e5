"""The order of samples: a permutation per epoch, the same from anywhere, as random as a shuffle, in O(1) memory."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.batch.order import SampleOrder

pytestmark = pytest.mark.quick

# 1, 2, primes, squares and their neighbours (where the two radices are equal, or one of them grows), and k (k + 1).
SIZES = [*range(1, 41), 97, 255, 256, 257, 272, 273, 997, 4095, 4096, 4097, 10_007, 2**16 + 1]
BILLION = 10**9


@pytest.mark.parametrize("num_samples", SIZES)
def test_every_epoch_is_a_permutation_of_all_samples(num_samples: int):
    epochs = SampleOrder(num_samples, seed=3).ids(0, 3 * num_samples).reshape(3, num_samples)
    assert epochs.dtype == np.int64
    assert (np.sort(epochs, axis=1) == np.arange(num_samples)).all()
    if num_samples > 20:  # by chance with probability 1/20! at most
        assert len(np.unique(epochs, axis=0)) == 3
        assert (epochs != np.arange(num_samples)).any(axis=1).all()


@pytest.mark.parametrize("num_samples", [BILLION, BILLION + 7, 2**31 - 1, 2**40 + 1, 2**62 - 1])
def test_slices_of_a_huge_epoch_never_repeat_a_sample(num_samples: int):
    order = SampleOrder(num_samples, seed=1)
    starts = [0, num_samples // 3, num_samples - 20_000]
    ids = np.concatenate([order.ids(start, 20_000) for start in starts])
    assert ids.min() >= 0
    assert ids.max() < num_samples
    # 60,000 independent draws from 10^9 would repeat 1.8 times on average; the slices are of one permutation.
    assert len(np.unique(ids)) == 60_000
    assert scipy.stats.kstest(ids / num_samples, "uniform").pvalue > 1e-4


def test_a_billion_samples_need_no_memory():
    order = SampleOrder(BILLION, seed=0)
    order.ids(0, 10)
    tracemalloc.start()
    try:
        order.ids(BILLION - 500, 1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A permutation of 10^9 takes 8 GB as int64, a bit per sample 125 MB.
    assert peak < 2**20


def test_the_order_of_a_seed_stays_what_it_is_from_release_to_release():
    # Golden numbers: a checkpoint of an older release continues only if the order stays.
    assert SampleOrder(10, seed=0).ids(0, 20).tolist() == [7, 3, 8, 0, 9, 5, 1, 2, 4, 6, 0, 8, 2, 7, 4, 5, 9, 3, 1, 6]
    assert SampleOrder(BILLION, seed=1).ids(BILLION, 3).tolist() == [376916363, 749443754, 83713466]


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    num_samples=st.integers(1, 300),
    seed=st.integers(0, 2**63 - 1),
    position=st.integers(0, 10**6),
    chunks=st.lists(st.integers(0, 50), max_size=8),
)
def test_ids_are_the_same_from_any_position_in_any_chunks(
    num_samples: int, seed: int, position: int, chunks: list[int]
):
    order = SampleOrder(num_samples, seed)
    whole = order.ids(position, sum(chunks))
    starts = itertools.accumulate(chunks, initial=position)
    parts = [order.ids(start, count) for start, count in zip(starts, chunks, strict=False)]
    assert np.concatenate([*parts, whole[:0]]).tolist() == whole.tolist()


def test_any_positions_at_once_give_what_each_gives_alone():
    order = SampleOrder(37, seed=5)
    positions = np.random.default_rng(0).integers(0, 37 * 12, 200)
    assert order.ids_at(positions).tolist() == [int(order.ids(int(place), 1)[0]) for place in positions]
    assert order.ids_at(positions[:0]).shape == (0,)


def test_a_batch_over_the_seam_ends_one_epoch_and_begins_the_next():
    order = SampleOrder(10, seed=0)
    first, second = order.ids(0, 10).tolist(), order.ids(10, 10).tolist()
    assert order.ids(7, 6).tolist() == first[7:] + second[:3]
    assert order.epochs(7, 6).tolist() == [0, 0, 0, 1, 1, 1]
    assert order.epochs(25, 1).tolist() == [2]


def test_seed_zero_in_epoch_one_is_not_seed_one_in_epoch_zero():
    orders = {
        (seed, epoch): tuple(SampleOrder(100, seed).ids(100 * epoch, 100).tolist())
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(set(orders.values())) == 25


@pytest.mark.parametrize(("position", "count"), [(-1, 5), (0, -1), (-3, 2)])
def test_negative_positions_and_counts_are_refused_with_both_numbers(position: int, count: int):
    order = SampleOrder(10)
    for function in (order.ids, order.epochs):
        with pytest.raises(ValueError, match=f"position={position}, count={count}"):
            function(position, count)


@pytest.mark.parametrize("num_samples", [0, -5, 2**62])
def test_a_set_without_samples_or_too_large_a_one_is_refused(num_samples: int):
    with pytest.raises(ValueError, match=f"num_samples={num_samples}: "):
        SampleOrder(num_samples)


# How random: many epochs of small sets, where a Feistel network is weakest, and one epoch of a large set. The seeds are
# fixed, so a test passes always or never. A sound shuffle gives p < 1e-4 for one seed in 10^4; there are 21 p-values.
SMALL = {3: 600, 4: 800, 5: 1500, 6: 2000, 7: 600, 8: 600, 9: 600, 10: 600}


@pytest.fixture(scope="module")
def small_sets() -> dict[int, np.ndarray]:
    """Orders [epochs, n] for every n."""
    return {n: SampleOrder(n, seed=11).ids(0, n * epochs).reshape(epochs, n) for n, epochs in SMALL.items()}


@pytest.mark.parametrize("n", SMALL)
def test_every_sample_is_equally_often_in_every_place(small_sets: dict[int, np.ndarray], n: int):
    orders = small_sets[n]
    counts = np.array([np.bincount(orders[:, place], minlength=n) for place in range(n)])
    expected = len(orders) / n
    # Rows and columns of the table have fixed sums, so its n^2 cells have (n - 1)^2 degrees of freedom; a cell's
    # variance is E/n (1 - 1/n), and the covariances make (n - 1)/n times the usual statistic a chi-square.
    statistic = ((counts - expected) ** 2).sum() / expected * (n - 1) / n
    assert scipy.stats.chi2.sf(statistic, (n - 1) ** 2) > 1e-4


def covariance_of_neighbours(n: int) -> np.ndarray:
    """Over all orders of n samples, of the events "b comes right after a", for the n (n - 1) ordered pairs (a, b)."""
    pairs = list(itertools.permutations(range(n), 2))
    both = np.zeros((len(pairs), len(pairs)))
    for (row, (a, b)), (column, (c, d)) in itertools.product(enumerate(pairs), repeat=2):
        if (a, b) == (c, d):
            both[row, column] = 1 / n
        # Two different pairs fit into one order, as a chain or apart, unless they share a first or a second sample or
        # are each other's reverse; either way there are (n - 2)! such orders of n!.
        elif a != c and b != d and (a, b) != (d, c):
            both[row, column] = 1 / (n * (n - 1))
    return both - 1 / n**2


def test_the_covariance_of_neighbours_is_that_of_all_orders():
    n = 5
    follows = np.zeros((120, n, n))
    for row, order in enumerate(itertools.permutations(range(n))):
        follows[row, order[:-1], order[1:]] = 1
    events = follows[:, ~np.eye(n, dtype=bool)]
    np.testing.assert_allclose(np.cov(events, rowvar=False, ddof=0), covariance_of_neighbours(n), atol=1e-15)


@pytest.mark.parametrize("n", SMALL)
def test_every_pair_is_equally_often_neighbours(small_sets: dict[int, np.ndarray], n: int):
    orders = small_sets[n]
    counts = np.bincount((orders[:, :-1] * n + orders[:, 1:]).ravel(), minlength=n * n).reshape(n, n)
    excess = (counts - len(orders) / n)[~np.eye(n, dtype=bool)]
    covariance = covariance_of_neighbours(n)
    statistic = excess @ np.linalg.pinv(covariance, hermitian=True) @ excess / len(orders)
    assert scipy.stats.chi2.sf(statistic, np.linalg.matrix_rank(covariance, hermitian=True)) > 1e-4


@pytest.mark.parametrize("n", [3, 4, 5])
def test_every_one_of_the_orders_is_equally_likely(small_sets: dict[int, np.ndarray], n: int):
    _, counts = np.unique(small_sets[n], axis=0, return_counts=True)
    assert len(counts) == len(list(itertools.permutations(range(n))))
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_a_large_epoch_keeps_no_trace_of_the_original_order():
    count = 100_003
    ids = SampleOrder(count, seed=2).ids(0, count)
    cells = np.bincount(ids * 16 // count * 16 + np.arange(count) * 16 // count, minlength=256).reshape(16, 16)
    assert scipy.stats.chi2_contingency(cells).pvalue > 1e-4
    steps = np.diff(ids) % count * 64 // count
    assert scipy.stats.chisquare(np.bincount(steps, minlength=64)).pvalue > 1e-4
