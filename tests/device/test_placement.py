"""Every option of a run on a GPU: no operation mixes devices, no collective gets a CPU tensor, no copy is a race."""

from __future__ import annotations

import pytest

from tests.device.conftest import FakeGpus

OPTIONS = {
    "fp16": "precision=fp16",
    "fp64": "precision=fp64",
    "guard that skips": "guard.policy=skip",
    "guard that rolls back, in fp16": "guard.policy=rollback precision=fp16 observers.checkpoint.every=2steps",
    "noise scale": "observers.noise_scale.every=2 batch.max_micro=4",
    "layers": "optimizer=lars observers.layers.every=2",
    "communication": "observers.communication.every=2",
    "ledger": "observers.ledger.enabled=true",
    "replicas": "observers.replicas.every=2",
    "recomputation": "observers.recompute.every=3",
    "checkpoints": "observers.checkpoint.every=2steps",
    "checkpoints in the background": "observers.checkpoint.every=2steps observers.checkpoint.background=true",
    "evaluations": "observers.evaluation.every=128samples",
    "augmentation": "data.augment.flip=true data.augment.crop_padding=1 data.augment.cutout=2",
    "layerwise rates": "parameters.lr_factor={head:10}",
    "label smoothing": "loss.label_smoothing=0.1",
    "batch ramp": "batch.ramp.milestones=[128samples] batch.ramp.totals=[128] length=512samples",
    "lower on out of memory": "batch.on_out_of_memory=lower",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_runs_on_a_gpu(fake_gpus: FakeGpus, name: str):
    run = fake_gpus.train("batch.max_micro=4", *OPTIONS[name].split(), steps=5)
    assert run.problems == []
