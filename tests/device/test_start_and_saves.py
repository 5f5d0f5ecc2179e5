"""A run is tried on rank 0's GPU, and its checkpoints leave a GPU without a wait of the host."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.device.conftest import FakeGpus
from tests.device.fake_cuda import GPU

SAVED_AT = (4, 8)
WRITER = "saved_state.py:settle"  # waits for the copies, in a thread of its own
MODELS = {
    "convnet": "batch.max_micro=4 precision.channels_last=true",
    "convnet, exact batch norm": "batch_norm=exact batch.max_micro=4",
    "dropout, lamb": "model=mlp model.dropout=0.1 optimizer=lamb",
    "bf16, checkpointed activations": "precision=bf16 precision.activation_checkpointing=true",
    "pairs": "data=paired_views loss=info_nce model=two_views batch.max_micro=4 observers.evaluation.micro=64 "
    "data.limit=null",
}


def waits_of_saves(fake_gpus: FakeGpus, *overrides: str) -> list[Counter[str]]:
    """Of steps after which a checkpoint is saved; those of the writing thread are counted beside them."""
    saves = ("observers.checkpoint.every=4steps", "observers.metrics.every=100", "observers.replicas.every=null")
    run = fake_gpus.train(*saves, *overrides, steps=10)
    assert run.problems == []
    return [step.waits for step in run.steps if step.number in SAVED_AT]


@pytest.mark.parametrize(("form", "most"), [("", 0), ("optimizer=adamw", 0), ("precision=fp16", 2)])
def test_a_checkpoint_in_the_background_makes_no_step_wait(fake_gpus: FakeGpus, form: str, most: int):
    for waits in waits_of_saves(fake_gpus, "observers.checkpoint.background=true", *form.split()):
        assert sum(count for place, count in waits.items() if WRITER not in place) <= most, waits


def test_a_checkpoint_in_the_foreground_waits_once(fake_gpus: FakeGpus):
    assert [[*waits.values()] for waits in waits_of_saves(fake_gpus)] == [[1], [1]]


def tried(overrides: list[str]) -> tuple[str, list[str], Counter[str], float]:
    """The dry run of rank 0: the device of its model, problems, copies, and its peak of memory in models."""
    from largebatch.run import prepare as preparing
    from tests.device.training import COMMON
    from tests.unit.composing import compose_run

    preparing.word_of_rank0 = lambda environ, find_out, **_: find_out()
    GPU.take()
    root = Path(__file__).parents[2]
    given = [one.replace("README.md", str(root / "README.md")) for one in overrides]
    with GPU:
        ready = preparing.prepare(compose_run(*COMMON, "length=4steps", *given), os.environ, joins=True)
        devices = {str(one.device) for one in ready.model.parameters()}
        size = sum(-(-one.nbytes // 512) * 512 for one in ready.model.parameters())
    counts = GPU.take()
    return ",".join(devices), list(GPU.problems), counts.copies, counts.peak / size


@pytest.mark.parametrize("name", MODELS)
def test_a_run_is_tried_on_the_device_of_rank_0_and_nothing_lies_elsewhere(fake_gpus: FakeGpus, name: str):
    device, problems, _, _ = fake_gpus.call(tried, MODELS[name].split())
    assert (device, problems) == ("cuda:0", [])


def test_the_dry_run_keeps_no_copy_of_the_weights_on_the_device_but_one(fake_gpus: FakeGpus):
    """Weights and their gradient, or weights and a copy; beside them a few tensors as large as a layer."""
    layers = "model.hidden=[256,256,256,256,256,256]"
    *_, peak = fake_gpus.call(tried, ["model=mlp", layers, "optimizer=adamw", "batch.max_micro=2"])
    assert peak < 2.8
