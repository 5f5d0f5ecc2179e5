"""The predicted memory of a rank of several is that of a real one, DDP's buckets included."""

from __future__ import annotations

from typing import Any

import pytest

from largebatch.run.predicted_memory.prediction import predict_memory
from tests.unit.run.test_predicted_memory import prepared_run, real_peak

OVERRIDES = ("model=mlp", "optimizer=adamw", "batch.total=96", "batch.max_micro=16")


def peak_of_rank() -> int:
    return real_peak(prepared_run(*OVERRIDES, world_size=2))


def test_two_ranks_take_what_is_predicted_for_two(ranks: Any):
    """Three micro-batches each, whose gradients add up in the buckets."""
    found = predict_memory(prepared_run(*OVERRIDES, world_size=2), "cpu")
    assert ranks(2).run(peak_of_rank) == pytest.approx([found.step.peak] * 2, rel=0.02)
