"""A step of a GPU is launched, not waited for: each wait of the host lets the device run dry."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.device.conftest import FakeGpus
from tests.device.run_record import StepCounts

MOST_IN_ROWS = 7
RUNS = {
    "sgd": "batch.max_micro=8",
    "accumulation": "batch.max_micro=2",
    "bf16": "precision=bf16 batch.max_micro=4",
    "lars": "optimizer=lars",
    "lamb": "optimizer=lamb",
    "adamw": "optimizer=adamw",
    "muon": "optimizer=muon model=mlp",
    "clipping": "clip_norm=1.0",
    "exact batch norm": "batch_norm=exact batch.max_micro=4",
    "compression": "precision.gradient_compression=bf16",
    "activation checkpointing": "precision.activation_checkpointing=true precision=bf16",
    "ordered": "batch.micro=4 batch.reduction=ordered",
}


def waits(steps: list[StepCounts]) -> Counter[str]:
    """Of the step that waits most."""
    return max((step.waits for step in steps), key=Counter.total)


@pytest.mark.parametrize("name", RUNS)
def test_a_plain_step_waits_for_nothing_and_a_row_for_little(fake_gpus: FakeGpus, name: str):
    run = fake_gpus.train(*RUNS[name].split())
    assert waits(run.plain()) == {}
    assert waits(run.logged()).total() <= MOST_IN_ROWS, waits(run.logged())
    assert run.problems == []


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="the agreement copies pageable memory to the device")
def test_agreeing_after_every_step_waits_for_nothing(fake_gpus: FakeGpus):
    assert waits(fake_gpus.train(slow=True).plain()) == {}


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="the units of a step are summed over ranks before its first forward pass"
)
def test_a_contrastive_loss_waits_for_nothing(fake_gpus: FakeGpus):
    pairs = "data=paired_views loss=info_nce model=two_views batch.max_micro=4 observers.evaluation.micro=64"
    assert waits(fake_gpus.train(*pairs.split(), "data.limit=null").plain()) == {}
