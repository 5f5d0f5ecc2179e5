"""The collectives of a run, as every rank issues them: in one order on all ranks, or NCCL waits for ever."""

from __future__ import annotations

import pytest

from tests.device.conftest import FakeGpus

# Of 19 samples ranks 0 to 2 have 3 in two micro-batches, ranks 3 to 7 have 2 in one.
UNEVEN = ["batch.total=19", "batch.max_micro=2"]
RUNS = {
    "sgd": "",
    "accumulation in order": "batch.micro=1 batch.max_micro=1 batch.reduction=ordered",
    "exact batch norm": "batch_norm=exact",
    "info_nce": "data=paired_views loss=info_nce model=two_views observers.evaluation.micro=64 data.limit=null",
    "measurements": "observers.noise_scale.every=2 observers.communication.every=2 observers.layers.every=2 "
    "observers.replicas.every=2 observers.ledger.enabled=true observers.recompute.every=null",
    "guard": "guard.policy=skip clip_norm=1.0",
}
BETWEEN_TWO = ("send", "recv_")  # a pair of ranks, which need not be the same pair for all


@pytest.mark.parametrize("name", RUNS)
def test_every_rank_of_an_uneven_plan_issues_the_same_collectives(fake_gpus: FakeGpus, name: str):
    first, *others = (
        [
            one
            for one in fake_gpus.train(*UNEVEN, *RUNS[name].split(), rank=rank, steps=3).collectives
            if not one.startswith(BETWEEN_TWO)
        ]
        for rank in (0, 4, 7)
    )
    assert len(first) > 5
    assert others == [first, first]


def sizes(collectives: list[str]) -> list[int]:
    return [int(one.rpartition(" ")[2]) for one in collectives]


@pytest.mark.parametrize(("name", "bytes_of_a_step"), [("sgd", 64), ("exact batch norm", 64), ("measurements", 512)])
def test_no_collective_grows_by_more_than_a_few_numbers_per_rank(fake_gpus: FakeGpus, name: str, bytes_of_a_step: int):
    few, many = (
        fake_gpus.train("batch.total=1024", "data.limit=1024", *RUNS[name].split(), world_size=ranks, steps=4)
        for ranks in (8, 1024)
    )
    for bytes_per_rank, one, other in (
        (1024, few.start.collectives, many.start.collectives),  # once: what is to be the same on all ranks
        *(
            (bytes_of_a_step, one.collectives, other.collectives)
            for one, other in zip(few.steps, many.steps, strict=True)
        ),
    ):
        grown = [large - small for small, large in zip(sizes(one), sizes(other), strict=True)]
        assert max(grown) <= bytes_per_rank * (1024 - 8)
