"""Batch norm and contrastive losses over the global batch: torch's kernels, and traffic that ranks do not add to."""

from __future__ import annotations

import pytest

from tests.device.conftest import FakeGpus

CHANNELS = (16, 32, 64)  # of the norms of the convnet
NUMBER = 8  # bytes
PAIRS = ("data=paired_views", "loss=info_nce", "model=two_views", "observers.evaluation.every=null")


@pytest.mark.parametrize("ranks", [8, 1024])
def test_exact_batch_norm_sums_2_channels_and_1_numbers_forward_and_2_channels_back(fake_gpus: FakeGpus, ranks: int):
    run = fake_gpus.train("batch.total=1024", "data.limit=1024", "batch_norm=exact", world_size=ranks, steps=3)
    forward = [f"allreduce_ {NUMBER * (2 * channels + 1)}" for channels in CHANNELS]
    back = [f"allreduce_ {NUMBER * 2 * channels}" for channels in reversed(CHANNELS)]
    assert run.steps[1].collectives[:6] == forward + back
    assert run.problems == []


@pytest.mark.parametrize("options", ["precision=fp32", "precision=bf16 precision.channels_last=true"])
def test_exact_batch_norm_launches_four_kernels_of_torch_for_a_norm_and_a_micro_batch(
    fake_gpus: FakeGpus, options: str
):
    run = fake_gpus.train("batch_norm=exact", "batch.max_micro=4", *options.split(), steps=3)
    kernels = run.steps[1].kernels
    for name in ("stats", "elemt", "backward_reduce", "backward_elemt"):
        assert kernels[f"batch_norm_{name}"] == 2 * len(CHANNELS)
    assert not {"var_mean", "native_batch_norm", "native_batch_norm_backward"} & kernels.keys()
    assert run.problems == []


def test_a_contrastive_loss_gathers_and_scatters_each_row_once_on_any_number_of_ranks(fake_gpus: FakeGpus):
    few, many = (
        fake_gpus.train("batch.total=512", "data.limit=null", *PAIRS, world_size=ranks, steps=3) for ranks in (8, 512)
    )
    sent = [[one for one in run.steps[1].collectives if "_base_" in one] for run in (few, many)]
    assert [one.split()[0] for one in sent[0]] == ["_allgather_base_", "_allgather_base_", "_reduce_scatter_base_"]
    assert [int(one.split()[1]) for one in sent[1]] <= [int(one.split()[1]) for one in sent[0]]
    assert few.problems == many.problems == []
