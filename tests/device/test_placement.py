"""Every option of a run on a GPU: no operation mixes devices, no collective gets a CPU tensor, no copy is a race."""

from __future__ import annotations

import pytest

from tests.device.conftest import FakeGpus

# What is measured, guarded or saved in step 4, and how often the host waits for it.
IN_STEP_4 = {
    "guard that skips": (1, "guard.policy=skip"),
    "guard that rolls back, in fp16": (1, "guard.policy=rollback precision=fp16 observers.checkpoint.every=3steps"),
    "noise scale": (1, "observers.noise_scale.every=2"),
    "noise scale of one micro-batch": (2, "observers.noise_scale.every=2 batch.max_micro=64"),
    "layers": (1, "optimizer=lars observers.layers.every=2"),
    "communication": (2, "observers.communication.every=2"),  # the end of the step, and the times of all ranks
    "ledger": (1, "observers.ledger.enabled=true"),
    "replicas": (1, "observers.replicas.every=2"),
    "recomputation": (1, "observers.recompute.every=2"),
    "checkpoints": (2, "observers.checkpoint.every=2steps observers.checkpoint.background=true"),  # checked before
}
OPTIONS = {
    "fp16": "precision=fp16",
    "fp64": "precision=fp64",
    "checkpoints that the step waits for": "observers.checkpoint.every=2steps",
    "evaluations": "observers.evaluation.every=128samples",
    "augmentation": "data.augment.flip=true data.augment.crop_padding=1 data.augment.cutout=2",
    "layerwise rates": "parameters.lr_factor={head:10}",
    "label smoothing": "loss.label_smoothing=0.1",
    "batch ramp": "batch.ramp.milestones=[128samples] batch.ramp.totals=[128] length=512samples",
    "lower on out of memory": "batch.on_out_of_memory=lower",
}


@pytest.mark.parametrize("name", IN_STEP_4)
def test_a_measurement_waits_once_or_twice(fake_gpus: FakeGpus, name: str):
    most, overrides = IN_STEP_4[name]
    run = fake_gpus.train("batch.max_micro=4", *overrides.split(), steps=5)
    assert run.steps[3].waits.total() <= most, run.steps[3].waits
    assert run.problems == []


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_runs_on_a_gpu(fake_gpus: FakeGpus, name: str):
    run = fake_gpus.train("batch.max_micro=4", *OPTIONS[name].split(), steps=5)
    assert run.problems == []
