"""The registry of metric keys is what runs write: no key is missing there, and none is there in vain."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from largebatch.diagnostics.communication.costs import TransferFit
from largebatch.records.metric_keys import METRIC_FAMILIES, metric_key
from largebatch.records.trackers import read_metrics
from largebatch.run.build import open_run
from largebatch.run.prepare import prepare
from largebatch.training.loop import train
from largebatch.training.observers.throughput import Throughput
from tests.multiprocess.pool import RankPool
from tests.unit.composing import compose_run
from tests.unit.data.faulty_data import BrokenFiles, broken_files

QUIET = ("logger=none", "observers.progress=false", "schedule.warmup=0ep")
# Every observer that can watch the same run. A guard with a threshold of nearly 0 finds bad steps in any run.
ALL = (
    *QUIET, "model=mlp", "model.hidden=[8]", "data=synthetic", "optimizer=lamb",
    "batch.total=32", "batch.micro=4", "length=1280samples", "clip_norm=1", "observers.metrics.every=5",
    "guard.policy=log", "guard.window=20", "guard.threshold=1e-6", "observers.layers.every=5",
    "observers.noise_scale.every=1", "observers.noise_scale.groups={stem: ['^blocks']}",
    "observers.noise_scale.geometry=optimizer",
    "observers.communication.every=5", "observers.sharpness.every=640samples", "observers.sharpness.samples=32",
    "observers.sharpness.micro=16", "observers.sharpness.m=16", "observers.sharpness.lanczos_iterations=4",
    "observers.sharpness.trace_samples=2", "metric=top5", "ema.half_life=1ep",
    "batch.ramp.by=noise_scale", "batch.ramp.totals=[40]", "batch.ramp.factor=1e6",
    "batch.ramp.confirmations=1", "observers.evaluation.every=640samples",
    "scaling.betas=half_life", "scaling.eps=sde", "scaling.clip_norm=noise",
)  # fmt: skip
SKIPPING = (*QUIET, "data.on_bad_sample=skip", "batch.total=20", "batch.max_micro=8", "length=4steps",
            "batch.on_out_of_memory=lower", "observers.metrics.every=1", "scaling.momentum=half_life",
            "scaling.weight_decay=timescale")  # fmt: skip


class LittleRoom(nn.Linear):
    """Runs out of memory with more than `room` samples."""

    room = math.inf

    def forward(self, value: Tensor) -> Tensor:
        if self.training and len(value) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(value)


class Augmented(BrokenFiles):
    """Draws by itself, so evaluations read an augmented set."""

    def __getitem__(self, index: int) -> Any:
        sample = super().__getitem__(index)
        return sample if index in self._broken else (sample[0] + torch.randn(8), sample[1])


def skipping() -> DictConfig:
    config = broken_files(*SKIPPING, count=50, broken=(0, 7, 8, 9, 31, 49))
    with open_dict(config):
        config.data.validation.broken = [3, 5]
        config.model = OmegaConf.create({"_target_": f"{__name__}.LittleRoom", "in_features": 8, "out_features": 4})
        config.data.train._target_ = f"{__name__}.Augmented"
    return config


def keys_of(run: str, folder: str) -> set[str]:
    """Keys of all rows that a run has written. Every rank calls it."""
    config = compose_run(*ALL) if run == "all" else skipping()
    config.run.dir = folder
    prepared = prepare(config, os.environ)  # tries the micro-batches of the plan
    with open_run(prepared, lambda: False, ()) as job, pytest.MonkeyPatch.context() as patch:
        patch.setattr(LittleRoom, "room", 2)
        patch.setattr(TransferFit, "bandwidth", 1e9)  # left out where the times of a busy machine lie on no line
        train(job.run)
        if not job.run.runtime.is_main:
            return set()
        for tracker in job.trackers:
            tracker.finish({}, [])
    return {key for row in read_metrics(Path(folder) / "metrics.jsonl") for key in row}


def test_every_key_of_a_row_is_registered_and_every_registered_key_is_written(
    ranks: Callable[[int], RankPool], tmp_path: Path
):
    written = set[str]()
    for run in ("all", "skipping"):
        written |= set().union(*ranks(2).run(keys_of, run, str(tmp_path / run)))
    written |= {f"train/{key}" for key in Throughput(1, 1.0, 1.0).values(1.0, num_devices=1)}
    assert {key for key in written if metric_key(key) is None} == set()
    registered = [one for family in METRIC_FAMILIES for one in family.keys]
    assert [one.name for one in registered if not any(one.matches(key) for key in written)] == []
