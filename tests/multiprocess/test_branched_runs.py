"""Branches through the trainer: each from the checkpoint's state, the same on any number of ranks, without a trace."""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.random_keys import stream_key
from largebatch.experiments.measure import branched_runs, critical_batch
from largebatch.experiments.measure.run_state import find_run_checkpoint
from largebatch.experiments.measure.weights import NotMeasurableError, open_weights, parse_measure
from largebatch.records.checkpoint import load_checkpoint
from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import prepare
from largebatch.run.train_quietly import train_quietly
from tests.restless import bits
from tests.unit.composing import compose_run

# fmt: off
RUN = ["precision=fp64", "logger=none", "observers.progress=false", "scaling.base_batch_size=24", "batch.total=24"]
BOWL = [
    *RUN, "data=noisy_quadratic", "data.train.num_samples=960", "scaling.rule=linear", "scaling.base_lr=0.02",
    "optimizer.momentum=0.9", "optimizer.nesterov=false", "optimizer.weight_decay=0",
    "batch.micro=4", "schedule=cosine", "schedule.warmup=0ep", "length=480samples",
]
DIGITS = [*RUN, "data=digits", "data.limit=200", "model=convnet", "model.width=2", "batch.micro=11", "length=3ep"]
BRANCHES = ["measure.critical_batch.factors=[0.5,1,2]", "measure.critical_batch.steps=4",
            "measure.critical_batch.windows=4", "measure.critical_batch.evaluation_samples=64"]
# fmt: on


def train(folder: str, overrides: list[str]) -> None:
    assert train_quietly(compose_run(*overrides), folder).status == "finished"


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


FOLLOWS = [
    "scaling.momentum=half_life", "scaling.clip_norm=noise", "clip_norm=1.2",
    "batch.ramp.milestones=[240samples]", "batch.ramp.totals=[48]", "length=720samples",
]  # fmt: skip


@pytest.mark.parametrize(("base", "total", "more"), [(24, 480, []), (48, 720, FOLLOWS)], ids=["rate", "all follows"])
def test_branches_are_sgd_from_the_weights_and_velocity_of_the_checkpoint_over_the_same_samples(
    base, total, more, tmp_path
):
    """The losses of every branch, to rounding, by a loop of numpy that shares nothing with the trainer.

    Where momentum and clipping follow the batch, the checkpoint lies where the ramp goes from 24 on to 48: its velocity
    is that of batch 24, and in each branch moves the weights as far as it would have there.
    """
    own = [*BOWL, "observers.checkpoint.every=240samples", "observers.checkpoint.keep=3", *more]
    train(str(tmp_path / "run"), own)
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000010"
    numbers = measured([*own, f"measure.checkpoint={checkpoint}"])
    count = 8 * base
    assert (numbers["samples_seen"], numbers["num_samples"], numbers["batch_size"]) == (240, count, base)

    prepared = prepare(compose_run(*own), os.environ)
    data, held_out = prepared.train.fetch(np.arange(960))[0].numpy(), prepared.validation
    curvature = prepared.model.curvature.numpy()
    saved = load_checkpoint(checkpoint).tensors
    (velocity,) = (one.numpy() for name, one in saved["optimizer"].items() if "momentum_buffer" in name)
    order = SampleOrder(960, prepared.config.seed)
    evaluated = SampleOrder(960, stream_key(prepared.config.seed, "evaluated subset")).ids(0, 64).reshape(4, 16)
    clipped = []
    for window in range(4):
        start = 240 + window * count
        noise = data[order.ids(start, count)]
        share = held_out.fetch(evaluated[window])[0].numpy().mean(axis=0)
        for place, size in enumerate((base // 2, base, 2 * base)):
            momentum, bound = (0.9 ** (size / 24), 1.2 / np.sqrt(size / 24)) if more else (0.9, np.inf)
            moves = (1 - momentum) / (1 - 0.9)  # so that rate / (1 - momentum) is linear in the batch
            carried = 0.9 / momentum * 24 / size if more else 1.0  # rate * momentum / (1 - momentum) is that of 24
            theta, v = saved["model"]["theta"].numpy().copy(), velocity * carried
            for step in range(count // size):
                rate = 0.02 * size / 24 * moves * 0.5 * (1 + np.cos(np.pi * (240 + step * size) / total))
                gradient = curvature * theta + noise[step * size : (step + 1) * size].mean(axis=0)
                factor = min(1.0, bound / (np.linalg.norm(gradient) + 1e-6))
                clipped.append(factor < 1)
                v = momentum * v + factor * gradient
                theta = theta - rate * v
                if place == 0 and 2 * (step + 1) == count // size:
                    half = 0.5 * curvature @ theta**2 + share @ theta
                    assert numbers["halfway"][window] == pytest.approx(half, rel=1e-12)
            loss = 0.5 * curvature @ theta**2 + share @ theta
            assert numbers["losses"][window][place] == pytest.approx(loss, rel=1e-12), (window, size)
    assert set(clipped) == ({True, False} if more else {False})


def test_three_ranks_find_what_one_does_with_batch_norm_and_leave_no_trace(ranks, tmp_path):
    own = [*DIGITS, "length=2ep", "observers.checkpoint.every=1ep"]
    train(str(tmp_path / "run"), own)
    first = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))[0]
    asked = [*own, f"measure.checkpoint={first}", "measure.critical_batch.factors=[1,2,3]",
             "measure.critical_batch.steps=2",
             "measure.critical_batch.rate_factors=[0.5,1]", "measure.critical_batch.pilot_windows=1"]  # fmt: skip
    alone = measured(asked)
    assert len({loss for window in alone["losses"] for loss in window}) == 12, "branches and windows differ"
    found, *others = ranks(3).run(measured, asked)
    assert others == [None, None]
    np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-12)
    np.testing.assert_allclose(found["halfway"], alone["halfway"], rtol=1e-12)
    assert [one["rate_factor"] for one in found["branches"]] == [one["rate_factor"] for one in alone["branches"]]


def test_nothing_is_left_of_branches_that_were_broken_off(monkeypatch):
    config = compose_run(*DIGITS, *BRANCHES, config_name="measure")
    options = parse_measure(config, keeps_format_for="critical-batch")
    prepared = prepare(config, os.environ)
    measurement = critical_batch.plan(prepared, options)
    steps, taken = [], branched_runs.take_step

    def fails(run, step):
        steps.append(step)
        if len(steps) == 20:
            raise error
        return taken(run, step)

    monkeypatch.setattr(branched_runs, "take_step", fails)
    with open_weights(prepared, None) as weights:
        assert find_run_checkpoint(prepared, weights) is None
        before = bits(weights.module, prepared.optimizer)
        for error in (RuntimeError, KeyboardInterrupt):
            with pytest.raises(error):
                measurement(weights)
            assert bits(weights.module, prepared.optimizer) == before
            assert len(steps) == 20
            steps.clear()


def test_branches_that_cannot_be_are_refused_with_every_reason():
    own = ["batch.total=25", "batch.micro=5", "optimizer=adamw", "scaling.betas=sde", "scaling.base_batch_size=11",
           "data.order=sequential", "schedule=cosine"]  # fmt: skip
    config = compose_run(*DIGITS, *own, config_name="measure")
    options = parse_measure(config, keeps_format_for="critical-batch")
    prepared = prepare(config, os.environ)

    def said(**asked: Any) -> str:
        chosen = options.critical_batch.model_copy(update=asked)
        with pytest.raises(ConfigError) as refused:
            critical_batch.plan(prepared, options.model_copy(update={"critical_batch": chosen}))
        return "\n".join(refused.value.errors)

    text = said(factors=[0.1, 1.0, 10.0], evaluation_samples=5)
    assert "0.1 times the batch of 25 is no whole number" in text
    assert "10 times the batch of 25 is 250, and the training set has 200" in text
    assert "Each window needs one of its own" in text
    assert "a curve needs 3" in said(factors=[1.0, 2.0])
    assert "beta" in said(factors=[1.0, 2.0, 5.0])
    assert "has 600 left after 0" in said(factors=[1.0, 2.0, 3.0], steps=40)
    assert "repeat each other" in said(factors=[1.0, 2.0, 4.0], steps=2, windows=4)
    given = prepared.config
    compressed = given.precision.model_copy(update={"gradient_compression": "powersgd"})  # no effect on one process
    held = given.scaling.model_copy(update={"as_batch": 48})
    config = given.model_copy(update={"precision": compressed, "scaling": held})
    with pytest.raises(NotMeasurableError, match=r"(?s)powersgd.*resume_allow=\[scaling.as_batch\]"):
        critical_batch.plan(replace(prepared, config=config), options)


def test_a_setting_without_effect_on_branches_is_refused():
    config = compose_run("measure.precision=fp64", config_name="measure")
    with pytest.raises(ConfigError, match=r"measure\.precision=fp64: has no effect on `measure critical-batch`"):
        parse_measure(config, keeps_format_for="critical-batch")
