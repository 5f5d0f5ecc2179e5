"""Branches through the trainer: each from the checkpoint's state, the same on any number of ranks, without a trace."""

from __future__ import annotations

import contextlib
import io
import json
import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from largebatch.__main__ import main
from largebatch.batch.order import SampleOrder
from largebatch.batch.random_keys import stream_key
from largebatch.experiments.measure import branched_runs, critical_batch
from largebatch.experiments.measure.run_state import find_run_checkpoint
from largebatch.experiments.measure.weights import open_weights, parse_measure
from largebatch.records.checkpoint import load_checkpoint
from largebatch.run.prepare import prepare
from tests.restless import bits
from tests.unit.composing import compose_run

# fmt: off
RUN = ["precision=fp64", "logger=none", "observers.progress=false", "scaling.base_batch_size=24", "batch.total=24"]
BOWL = [
    *RUN, "data=noisy_quadratic", "data.train.num_samples=960", "scaling.rule=linear", "scaling.base_lr=0.02",
    "optimizer.momentum=0.9", "optimizer.nesterov=false", "optimizer.weight_decay=0",
    "batch.micro=4", "schedule=cosine", "schedule.warmup=0ep", "length=480samples",
]
DIGITS = [*RUN, "data=digits", "data.limit=200", "model=convnet", "model.width=2", "batch.micro=7", "length=3ep"]
BRANCHES = ["measure.critical_batch.factors=[0.5,1,2]", "measure.critical_batch.steps=4",
            "measure.critical_batch.windows=4", "measure.critical_batch.evaluation_samples=64"]
# fmt: on


def train(folder: str, overrides: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["train", *overrides, f"run.dir={folder}"]) == 0


def traces(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All `bits`, but not which tensors hold buffers: DDP puts others in their place."""
    found = bits(module, optimizer)
    return found | {"tensors": [(name, value) for name, _, value in found["tensors"]]}


def measured(overrides: list[str]) -> dict[str, Any] | None:
    """The numbers of the result on rank 0, and on every rank whether all was as before."""
    config = compose_run(*BRANCHES, *overrides, config_name="measure")
    options = parse_measure(config, keeps_format_for="critical-batch")
    prepared = prepare(config, os.environ, joins=True)
    measurement = critical_batch.plan(prepared, options)
    with open_weights(prepared, options.checkpoint) as weights, contextlib.redirect_stdout(io.StringIO()):
        before = traces(weights.module, prepared.optimizer)
        result = measurement(weights)
        assert traces(weights.module, prepared.optimizer) == before
    return None if result is None else json.loads(json.dumps(result.record()))["numbers"]


def test_branches_are_sgd_from_the_weights_and_velocity_of_the_checkpoint_over_the_same_samples(tmp_path):
    """The losses of every branch, to rounding, by a loop of numpy that shares nothing with the trainer."""
    own = [*BOWL, "observers.checkpoint.every=240samples"]
    train(str(tmp_path / "run"), own)
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000010"
    numbers = measured([*own, f"measure.checkpoint={checkpoint}"])
    assert (numbers["samples_seen"], numbers["num_samples"], numbers["batch_size"]) == (240, 192, 24)

    prepared = prepare(compose_run(*own), os.environ)
    data, held_out = prepared.train.fetch(np.arange(960))[0].numpy(), prepared.validation
    curvature = prepared.model.curvature.numpy()
    saved = load_checkpoint(checkpoint).tensors
    (velocity,) = (one.numpy() for name, one in saved["optimizer"].items() if "momentum_buffer" in name)
    order = SampleOrder(960, prepared.config.seed)
    evaluated = SampleOrder(960, stream_key(prepared.config.seed, "evaluated subset")).ids(0, 64).reshape(4, 16)
    for window in range(4):
        start = 240 + window * 192
        noise = data[order.ids(start, 192)]
        share = held_out.fetch(evaluated[window])[0].numpy().mean(axis=0)
        for place, size in enumerate((12, 24, 48)):
            theta, v = saved["model"]["theta"].numpy().copy(), velocity.copy()
            for step in range(192 // size):
                rate = 0.02 * size / 24 * 0.5 * (1 + np.cos(np.pi * (240 + step * size) / 480))
                v = 0.9 * v + curvature * theta + noise[step * size : (step + 1) * size].mean(axis=0)
                theta = theta - rate * v
                if size == 12 and step == 7:
                    half = 0.5 * curvature @ theta**2 + share @ theta
                    assert numbers["halfway"][window] == pytest.approx(half, rel=1e-12)
            loss = 0.5 * curvature @ theta**2 + share @ theta
            assert numbers["losses"][window][place] == pytest.approx(loss, rel=1e-12), (window, size)


def test_two_and_three_ranks_find_what_one_does_with_batch_norm_and_leave_no_trace(ranks, tmp_path):
    own = [*DIGITS, "observers.checkpoint.every=1ep"]
    train(str(tmp_path / "run"), own)
    first = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))[0]
    asked = [*own, f"measure.checkpoint={first}", "measure.critical_batch.factors=[1,2,3]",
             "measure.critical_batch.steps=2",
             "measure.critical_batch.rate_factors=[0.5,1]", "measure.critical_batch.pilot_windows=1"]  # fmt: skip
    (alone,) = ranks(1).run(measured, asked)
    assert len({loss for window in alone["losses"] for loss in window}) == 12, "branches and windows differ"
    for world_size in (2, 3):
        found, *others = ranks(world_size).run(measured, asked)
        assert others == [None] * (world_size - 1)
        np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-9)
        np.testing.assert_allclose(found["halfway"], alone["halfway"], rtol=1e-9)
        assert [one["rate_factor"] for one in found["branches"]] == [one["rate_factor"] for one in alone["branches"]]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_branches_that_were_broken_off(error, monkeypatch, tmp_path):
    config = compose_run(*DIGITS, *BRANCHES, config_name="measure")
    options = parse_measure(config, keeps_format_for="critical-batch")
    prepared = prepare(config, os.environ)
    measurement = critical_batch.plan(prepared, options)
    steps = []
    taken = branched_runs.take_step

    def fails(run, step):
        steps.append(step)
        if len(steps) == 20:
            raise error
        return taken(run, step)

    monkeypatch.setattr(branched_runs, "take_step", fails)
    with open_weights(prepared, None) as weights:
        assert find_run_checkpoint(prepared, weights) is None
        before = bits(weights.module, prepared.optimizer)
        with pytest.raises(error):
            measurement(weights)
        assert bits(weights.module, prepared.optimizer) == before
    assert len(steps) == 20


def test_branches_that_cannot_be_are_refused_with_every_reason(capsys, tmp_path):
    def said(*overrides: str) -> str:
        assert main(["measure", "critical-batch", *DIGITS, *overrides, f"run.dir={tmp_path / 'out'}"]) == 2
        return capsys.readouterr().err

    asked = said("measure.critical_batch.factors=[0.1,1,10]", "measure.critical_batch.evaluation_samples=5")
    assert "0.1 times the batch of 24 is no whole number" in asked
    assert "10 times the batch of 24 is 240, and the training set has 200" in asked
    assert "Each window needs one of its own" in asked
    assert "a curve needs 3" in said("batch.total=200", "measure.critical_batch.factors=[0.5,1]")
    assert "has 600 left after 0" in said("measure.critical_batch.steps=40", "schedule=cosine")
    assert "repeat each other" in said("data.order=sequential", *BRANCHES, "measure.critical_batch.factors=[1,2,4]",
                                       "batch.total=25", "measure.critical_batch.steps=2")  # fmt: skip
    assert "powersgd" in said("precision.gradient_compression=powersgd", "precision=fp32")
    assert "measure.precision=fp64: has no effect on `measure critical-batch`" in said("measure.precision=fp64")
