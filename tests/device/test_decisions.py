"""What a run decides by itself on a GPU reaches torch: format, layout, switches, fused optimizers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.device.conftest import FakeGpus

CONVNET = ("data=digits", "data.limit=64", "model=convnet", "model.width=4")


@dataclass
class Seen:
    """Of a run of three steps: what torch was set to inside and after it, and how its tensors lie.

    Attributes:
        layouts: whether a four-dimensional weight, gradient or state of the optimizer is in channels_last.
        updates: fused kernels, each with its launches in the second step.
        waits_of_update: how often the host waited for the device in `Runtime.step` of the second step.
    """

    precision: str
    inside: tuple[bool, bool]
    after: tuple[bool, bool]
    workspace: str | None
    layouts: set[bool]
    updates: dict[str, int]
    waits_of_update: int
    problems: list[str]


def trained(*overrides: str, folder: Path) -> Seen:
    """Three steps of a run."""
    import torch

    from largebatch.distributed.kernels import WORKSPACE
    from largebatch.run.build import open_run
    from largebatch.run.prepare import prepare
    from largebatch.training.loop import take_step
    from tests.device.fake_cuda import GPU
    from tests.device.training import COMMON
    from tests.unit.composing import compose_run

    def switches() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark

    prepared = prepare(compose_run(*COMMON, f"run.root={folder}", "length=3steps", *overrides), os.environ)
    with GPU, open_run(prepared, lambda: False, []) as opened:
        run, inside = opened.run, switches()
        run.steps.begin(run.progress, [observer.asks for observer in run.observers])
        run.agreement.begin(run.progress)
        steps = []
        while (step := run.steps.next()) is not None:
            GPU.take()
            take_step(run, step)
            steps.append(GPU.take())
        tensors = [*run.module.parameters(), *(one.grad for one in run.module.parameters() if one.grad is not None)]
        tensors += [one for state in run.optimizer.state.values() for one in state.values() if hasattr(one, "dim")]
        # A layout shows where there are several channels and several pixels.
        pictures = [one for one in tensors if one.dim() == 4 and one.shape[1] > 1 and one.shape[2] > 1]
        layouts = {one.is_contiguous(memory_format=torch.channels_last) for one in pictures}
        precision = run.runtime.precision
    updates = {name: count for name, count in steps[1].kernels.items() if name.startswith("_fused_")}
    waits = sum(count for where, count in steps[1].waits.items() if "runtime.py:step:" in where)
    return Seen(precision, inside, switches(), os.environ.get(WORKSPACE), layouts, updates, waits, list(GPU.problems))


def seen(gpus: FakeGpus, *overrides: str) -> Seen:
    found = gpus.call(trained, *overrides, folder=Path("runs"), rank=0, world_size=2)
    assert found.problems == []
    assert found.after == (False, False), "a second run of the process finds torch as it was"
    return found


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_by_default_a_gpu_computes_in_bf16_and_channels_last_and_steps_in_one_launch(
    fake_gpus: FakeGpus, optimizer: str
):
    found = seen(fake_gpus, *CONVNET, f"optimizer={optimizer}")
    assert (found.precision, found.inside) == ("bf16", (False, True))
    assert found.layouts == {True}
    assert found.updates == {f"_fused_{optimizer}_": 2}, "one for each group of parameters"


def test_the_step_under_fp16_waits_for_no_overflow_where_the_optimizer_is_fused(fake_gpus: FakeGpus):
    assert seen(fake_gpus, *CONVNET, "precision=fp16").waits_of_update == 0
    assert seen(fake_gpus, *CONVNET, "precision=fp16", "+optimizer.foreach=true").waits_of_update == 1


@pytest.mark.parametrize(
    "way",
    [
        ("batch.reduction=ordered", "batch.micro=8"),
        ("batch.max_micro=8",),
        ("batch_norm=exact", "batch.max_micro=8"),
        ("batch.on_out_of_memory=lower", "batch.max_micro=8"),
        ("observers.noise_scale.every=1", "batch.max_micro=8"),
    ],
    ids=lambda way: way[0],
)
def test_in_every_way_to_have_the_gradient_it_lies_as_its_parameter(fake_gpus: FakeGpus, way: tuple[str, ...]):
    """Fused kernels go through parameter, gradient and state in the order of memory."""
    assert seen(fake_gpus, *CONVNET, *way).layouts == {True}


def test_promises_of_bits_turn_the_switch_on_and_cublas_is_told(fake_gpus: FakeGpus):
    found = seen(fake_gpus, *CONVNET, "observers.ledger.enabled=true", "precision=fp32")
    assert (found.inside, found.workspace) == ((True, False), ":4096:8")
    assert found.layouts == {False}
    asked = seen(fake_gpus, *CONVNET, "precision.channels_last=false", "+optimizer.foreach=true")
    assert (asked.inside, asked.workspace, asked.layouts) == ((False, True), None, {False})
    assert not any(name.startswith("_fused_") for name in asked.updates)
