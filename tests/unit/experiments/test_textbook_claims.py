"""Claims of the textbook that are measured: the batch gradient is unbiased, powers of two are fast."""

from __future__ import annotations

import numpy as np
import pytest

from largebatch.experiments.textbook.powers_of_two import Settings, Timing
from largebatch.experiments.textbook.unbiasedness import mean_of_draws


def some_gradients(count: int = 50, size: int = 4) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(1.0, [1.0, 2.0, 0.5, 0.1][:size], (count, size))


def test_the_band_of_an_unbiased_gradient_holds_95_of_100_seeds_and_its_ratio_is_1_on_average():
    found = [mean_of_draws(some_gradients(), 4, 40, seed=seed) for seed in range(200)]
    assert abs(np.mean([one.ratio for one in found]) - 1) < 4 * np.std([one.ratio for one in found]) / np.sqrt(200)
    assert abs(np.mean([one.is_unbiased for one in found]) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 200)


def test_the_expected_distance_is_the_standard_error_of_the_mean():
    gradients = some_gradients()
    one = mean_of_draws(gradients, 4, 40, seed=0)
    assert one.expected[-1] == pytest.approx(np.sqrt(gradients.var(axis=0).sum() / (4 * 40)), rel=1e-12)


def test_a_biased_gradient_falls_outside_the_band(monkeypatch: pytest.MonkeyPatch):
    """Draws that prefer the first samples, as a loader that repeats them to fill the last batch does."""
    drawn = np.random.Generator.multinomial

    class Biased(np.random.Generator):
        def multinomial(self, n, pvals, size=None):  # type: ignore[no-untyped-def]
            weights = np.where(np.arange(len(pvals)) < 5, 4.0, 1.0)
            return drawn(self, n, weights / weights.sum(), size)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Biased(np.random.PCG64(seed)))
    assert not mean_of_draws(some_gradients(), 4, 4000, seed=0).is_unbiased


@pytest.mark.parametrize(("batch_size", "is_ragged"), [(10, False), (16, True)])
def test_an_epoch_adds_up_to_the_full_gradient_if_batches_count_by_their_size(batch_size: int, is_ragged: bool):
    one = mean_of_draws(some_gradients(), batch_size, 2, seed=0)
    assert one.weighted < 1e-14
    assert (one.plain > 1e-3) == is_ragged


def test_a_power_of_two_is_compared_within_each_round():
    """The machine was twice as slow in the second round: that is no property of the sizes."""
    timing = Timing(8, below=[1.0, 2.0], at=[0.9, 1.8], above=[1.0, 2.0])
    assert timing.ratios == pytest.approx([0.9, 0.9])


def test_sizes_that_are_no_powers_of_two_are_refused():
    with pytest.raises(ValueError, match="48 is no power of two"):
        Settings(powers=[32, 48], rounds=6, seconds=0.01)
