"""A step of a GPU is launched, not waited for: each wait of the host lets the device run dry."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.device.conftest import FakeGpus
from tests.device.run_record import StepCounts

MOST_IN_ROWS = 3
IN_ROWS = {
    "reduction_clock.py:timeline": "the end of the step, once everything of it is launched: all times come from here",
    "observers/stragglers.py:after_step": "the times of all ranks, summed over them",
    "training/step_clock.py:settle": "the end of the step once more, which the host has just waited for",
    "observers/metrics.py:_row": "the gradient's norm, when the device has nothing left to do",
}
SLOW = ("sgd", "lamb", "exact batch norm")  # as if above 0.1 s, after each of which the ranks agree
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
    "info_nce": "data=paired_views loss=info_nce model=two_views batch.max_micro=4 observers.evaluation.micro=64 "
    "data.limit=null",
    "compression": "precision.gradient_compression=bf16",
    "activation checkpointing": "precision.activation_checkpointing=true precision=bf16",
    "ordered": "batch.micro=4 batch.reduction=ordered",
}


def waits(steps: list[StepCounts]) -> Counter[str]:
    """Of the step that waits most."""
    return max((step.waits for step in steps), key=Counter.total)


@pytest.mark.parametrize("name", RUNS)
def test_a_plain_step_waits_for_nothing_and_a_row_for_little(fake_gpus: FakeGpus, name: str):
    run = fake_gpus.train(*RUNS[name].split(), slow=name in SLOW)
    assert waits(run.plain()) == {}
    in_rows = waits(run.logged())
    assert in_rows.total() <= MOST_IN_ROWS, in_rows
    assert [place for place in in_rows if not any(allowed in place for allowed in IN_ROWS)] == []
    assert run.problems == []


def test_samples_that_differ_in_units_wait_for_nothing(fake_gpus: FakeGpus):
    run = fake_gpus.train("loss.weight=[1,2,1,1,1,1,1,1,1,3]", "batch.max_micro=4", slow=True)
    assert waits(run.plain()) == {}


@pytest.mark.parametrize(("world_size", "slow"), [(1, False), (8, False), (8, True)])
def test_the_time_of_a_step_is_that_of_the_device(fake_gpus: FakeGpus, world_size: int, slow: bool):
    """Also where the host runs ahead. To a tenth: observers and the loading thread launch, too."""
    run = fake_gpus.train("batch.max_micro=8", world_size=world_size, slow=slow, steps=11, kernel_s=1e-3)
    (row,) = [one for one in run.rows if one["step"] == 9]
    usual_s = sum(step.launches for step in run.steps if step.number in (7, 8, 9)) / 3 * run.kernel_s
    assert row["time/step_s"] == pytest.approx(usual_s, rel=0.1)
    assert row["train/samples_per_s"] == pytest.approx(64 / usual_s, rel=0.1)
    # By the host's clock the step after a row takes no time: ranks would stop agreeing after every step.
    told_s = [told_s for _, _, told_s, step, *_ in run.agreed if step in ((8, 9, 10) if slow else (9,))]
    assert told_s == pytest.approx([usual_s] * len(told_s), rel=0.25)
