"""Gradients as products of thin matrices: exact where the matrices are not thin; errors come back on any ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from largebatch.batch.plan import BatchPlan
from largebatch.data import random_classification
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.power_sgd import PowerSGD, PowerSGDOptions
from largebatch.gradient.reductions import Overlapped
from largebatch.losses import CrossEntropy
from largebatch.training.guard import Guard
from largebatch.training.loop import Run, train
from tests.multiprocess.made_run import made_run

SAMPLES, STEPS, WIDTH = 48, 5, 24
GUARD = Guard("skip", window=20, threshold=None, most_in_a_row=3)
ALWAYS = {"start_powerSGD_iter": 2, "min_compression_rate": 1e-3}


def run_of(runtime: Runtime, **options: Any) -> Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
    data = random_classification(SAMPLES, 3, (WIDTH,), "train")
    plan = BatchPlan.solve(global_batch_size=12, world_size=runtime.world_size, max_micro_batch_size=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return made_run(runtime, model, CrossEntropy(), optimizer, plan, data, lambda _: 0.1, STEPS, **options)


def trained(options: dict[str, Any]) -> dict[str, Any]:
    """The weights after some steps, and the state of the compression on rank 0."""
    with Runtime.open() as runtime:
        run = run_of(runtime, **options)
        assert train(run) == "finished"
        assert isinstance(run.gradient.reduction, Overlapped)
        compression = run.gradient.reduction.power_sgd
        weights = torch.cat([one.detach().flatten() for one in run.module.parameters()])
        own = {} if compression is None else dict(compression._state.error_dict)
        return {"weights": weights, "own": own, "saved": {} if compression is None else compression.state()}


def loaded(saved: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The errors of each rank, and what a person is told."""
    with Runtime.open() as runtime:
        compression = PowerSGD(runtime, PowerSGDOptions(), torch.nn.Linear(1, 1))
        if not runtime.is_main:
            saved = {name: one.to("meta") for name, one in saved.items()}
        notes = compression.load(saved)
        return {"own": dict(compression._state.error_dict), "notes": notes, "iter": compression._state.iter}


def test_matrices_that_are_not_thin_send_the_mean_gradient(ranks):
    whole = PowerSGDOptions(matrix_approximation_rank=WIDTH, **ALWAYS)
    thin = PowerSGDOptions(matrix_approximation_rank=1, **ALWAYS)
    (plain, *_) = ranks(2).run(trained, {})
    (ours, *_) = ranks(2).run(trained, {"compression": "powersgd", "powersgd": whole, "bucket_mb": 1})
    (less, *_) = ranks(2).run(trained, {"compression": "powersgd", "powersgd": thin})
    scale = plain["weights"].abs().max()
    assert (ours["weights"] - plain["weights"]).abs().max() <= 1e-4 * scale  # orthogonal in float32 to some 1e-6
    assert (less["weights"] - plain["weights"]).abs().max() > 1e-3 * scale, "it is compressed"


def test_ranks_go_on_with_their_own_errors_and_other_ranks_with_their_mean(ranks):
    options = {"compression": "powersgd", "powersgd": PowerSGDOptions(**ALWAYS)}
    found = ranks(3).run(trained, options)
    saved = found[0]["saved"]
    assert [one["saved"] for one in found[1:]] == [{}, {}]
    for rank, one in enumerate(ranks(3).run(loaded, saved)):
        assert one["notes"] == []
        assert one["iter"] == found[0]["saved"]["counters"][0]
        for index, error in one["own"].items():
            assert torch.equal(error, found[rank]["own"][index])
            assert error.abs().max() > 0
    for one in ranks(2).run(loaded, saved):
        assert one["notes"] == ["PowerSGD: 2 ranks share the mean error of 3"]
        for index, error in one["own"].items():
            assert torch.equal(error, torch.stack([other["own"][index] for other in found]).mean(dim=0))


def error_of(options: dict[str, Any], precision: str) -> str:
    with Runtime.open(precision=precision) as runtime:
        try:
            run_of(runtime, **options)
        except ValueError as error:
            return str(error)
    return ""


@pytest.mark.parametrize(
    ("options", "precision", "expected"),
    [
        (
            {"guard": Guard("skip", window=20, threshold=None, most_in_a_row=3)},
            "fp32",
            "guard.policy=skip: does not go with",
        ),
        ({}, "fp64", "a few digits would be left of sixteen"),
        ({"ordered": True}, "fp32", "it is for audits, bit for bit"),
        ({"halves_micro_batches": True}, "fp32", "sums nothing in steps that may be taken again"),
    ],
    ids=["guard", "double precision", "ordered", "lower"],
)
def test_exact_claims_refuse_it(ranks, options, precision, expected):
    for error in ranks(2).run(error_of, {"compression": "powersgd", **options}, precision):
        assert expected in error
