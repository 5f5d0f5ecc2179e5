"""Ways to reduce gradients on GPUs: where the host waits, what rank 0 receives, and how large a message is."""

from __future__ import annotations

import pytest

from tests.device.conftest import FakeGpus

PIECE = 2**18  # of 340,008 bytes of gradients
MODEL = ["model=mlp", "model.hidden=[256,256]", "observers.metrics.every=100", f"precision.bucket_mb={PIECE / 2**20}"]
ORDERED = ["batch.reduction=ordered", "batch.micro=1"]


@pytest.mark.parametrize(("world_size", "rounds"), [(8, 3), (64, 6)])
def test_rank_0_of_an_ordered_sum_receives_from_log2_of_the_ranks_in_pieces(
    fake_gpus: FakeGpus, world_size: int, rounds: int
):
    run = fake_gpus.train(
        *MODEL, *ORDERED, f"batch.total={world_size}", "data.limit=1024", world_size=world_size, steps=5
    )
    (step,) = run.plain()
    rest = 340008 - PIECE
    assert step.collectives == [
        *[f"recv_ {PIECE}"] * rounds, *[f"recv_ {rest}"] * rounds, f"broadcast_ {PIECE}", f"broadcast_ {rest}"
    ]  # fmt: skip
    assert (step.waits, run.problems) == ({}, [])


def test_a_sum_after_all_passes_goes_in_pieces_and_waits_for_the_agreement_alone(fake_gpus: FakeGpus):
    run = fake_gpus.train(*MODEL, "batch.on_out_of_memory=lower", "batch.max_micro=2", rank=3, steps=5)
    (step,) = run.plain()
    assert step.collectives == ["allreduce_ 64", f"allreduce_ {PIECE}", f"allreduce_ {340008 - PIECE}"]
    assert all("gradient/out_of_memory.py" in place for place in step.waits)
    assert run.problems == []


def test_power_sgd_sends_thin_matrices_and_waits_once_for_each_bucket(fake_gpus: FakeGpus):
    thin = ["precision.gradient_compression=powersgd", "precision.powersgd.start_powerSGD_iter=2"]
    run = fake_gpus.train(*MODEL, *thin, rank=3, steps=5)
    (step,) = run.plain()
    assert sum(int(one.split()[1]) for one in step.collectives) < 340008 / 20
    assert [place.split(" at ")[0] for place in step.waits] == ["cuda.synchronize"]
    assert step.waits.total() == 2
    assert run.problems == []
