"""Range tests through the trainer: the same on any number of ranks, and without a trace."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from largebatch.batch.order import SampleOrder
from largebatch.diagnostics import RangeSettings
from largebatch.experiments.find_lr import run_range_tests
from largebatch.experiments.measure.weights import Weights, open_weights
from largebatch.run.prepare import Prepared, prepare
from tests.restless import generators
from tests.unit.composing import compose_run

FP64 = ["precision=fp64", "logger=none"]
DIGITS = [*FP64, "data=digits", "data.limit=200", "model=convnet", "model.width=2", "batch.total=30", "batch.micro=7"]
BOWL = [*FP64, "data=noisy_quadratic", "optimizer.momentum=0.0", "batch.total=100"]


def with_weights(overrides: list[str], function: Callable[[Prepared, Weights], Any]) -> Any:
    prepared = prepare(compose_run(*overrides), os.environ)
    with open_weights(prepared, None) as weights:
        return function(prepared, weights)


def bits(weights: Weights) -> dict[str, Any]:
    values: dict[str, Any] = {name: one.numpy().tobytes() for name, one in weights.module.state_dict().items()}
    values["modes"] = [part.training for part in weights.module.modules()]
    values["gradients"] = [one.grad is None for one in weights.module.parameters()]
    return values | generators()


def curves_of(overrides: list[str], settings: RangeSettings, seeds: list[int]) -> dict[int, tuple[Any, ...]]:
    """By seed: losses, divergence; and whether nothing else has changed."""

    def run(prepared: Prepared, weights: Weights) -> dict[int, tuple[Any, ...]]:
        before = bits(weights)
        (tests,) = run_range_tests(prepared, weights, [prepared.numbers.plan], settings, seeds)
        same = bits(weights) == before
        return {seed: (one.losses, one.diverged, same) for seed, one in tests.curves.items()}

    return with_weights(overrides, run)


# With dropout or batch norm micro-batches must be the same ones; the batch of 30 has 4 of 7 and one of 2 samples.
CASES = {
    "batch norm, not diverged": (DIGITS, RangeSettings(min=1e-4, max=0.05, steps=20, smoothing=0.5)),
    "diverged": (BOWL, RangeSettings(min=1e-3, max=1e3, steps=60)),
    "the loss is not finite": (BOWL, RangeSettings(min=1e200, max=1e300, steps=30)),
}


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_ranks_sees_the_same_losses_stops_alike_and_leaves_no_trace(ranks, case):
    overrides, settings = CASES[case]
    (alone,) = ranks(1).run(curves_of, overrides, settings, [0, 1])
    assert alone[0][0][0] != pytest.approx(alone[1][0][0], rel=1e-6), "seeds are different runs"
    assert [one[1] for one in alone.values()] == [case != "batch norm, not diverged"] * 2
    for found in ranks(2).run(curves_of, overrides, settings, [0, 1]):
        for seed, (losses, diverged, same) in found.items():
            assert same
            assert diverged == alone[seed][1]
            np.testing.assert_allclose(losses, alone[seed][0], rtol=1e-9)
    assert all(one[2] for one in alone.values())


def test_the_loss_is_that_of_the_whole_batch_before_the_step():
    """On the quadratic from theta = 1 the first loss is 1/2 sum h plus the mean noise of the batch, times 1."""

    def run(prepared: Prepared, weights: Weights) -> tuple[float, float]:
        (tests,) = run_range_tests(prepared, weights, [prepared.numbers.plan], RangeSettings(steps=30), [0])
        ids = SampleOrder(len(prepared.train), 0).ids(0, 100)
        noise, _ = prepared.train.fetch(ids)
        return tests.curves[0].losses[0], float(weights.module.curvature.sum() / 2 + noise.mean(dim=0).sum())

    first, expected = with_weights(BOWL, run)
    assert first == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_a_test_that_was_broken_off(error):
    def run(prepared: Prepared, weights: Weights) -> tuple[Any, Any, int]:
        calls: list[int] = []

        def fail(*_: Any) -> None:
            calls.append(1)
            if len(calls) == 50:  # in the second seed
                raise error

        weights.module.register_forward_hook(fail)
        before = bits(weights)
        settings = RangeSettings(min=1e-4, max=0.05, steps=8, smoothing=0.5)
        with pytest.raises(error):
            run_range_tests(prepared, weights, [prepared.numbers.plan], settings, [0, 1])
        return before, bits(weights), len(calls)

    before, after, calls = with_weights(DIGITS, run)
    assert calls == 50
    assert after == before
