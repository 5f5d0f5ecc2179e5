"""What a run loads with: workers from before its process group to its end, a thread where it helps."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from largebatch.distributed.runtime import Runtime
from largebatch.run import parts
from largebatch.run.build import open_run
from largebatch.run.loading import prefetch_of, prefetch_rows
from largebatch.run.precision.device import Device
from largebatch.run.prepare import prepare
from largebatch.training.loop import train
from tests.unit.composing import compose_run


class Points(Dataset[Any]):
    """Random points with random labels, one by one."""

    def __init__(self, num_samples: int, num_classes: int, shape: Sequence[int], split: str) -> None:
        generator = torch.Generator().manual_seed(len(split))
        self._points = torch.randn(num_samples, *shape, generator=generator)
        self._labels = torch.randint(num_classes, (num_samples,), generator=generator)

    def __len__(self) -> int:
        return len(self._points)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._points[index], int(self._labels[index])


SMALL = (
    "model=mlp", "model.hidden=[4]", "data=synthetic", "batch.total=8", "schedule.warmup=0ep",
    "data.train._target_=tests.unit.run.test_loading.Points", "data.train.num_samples=32", "logger=none",
    "data.validation._target_=tests.unit.run.test_loading.Points", "data.validation.num_samples=16", "length=4steps",
    "observers.evaluation.every=2steps", "observers.progress=false",
)  # fmt: skip


def workers() -> set[int]:
    return {one.pid for one in multiprocessing.active_children() if one.pid is not None}


def test_workers_start_before_the_process_group_and_serve_every_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, seen = workers(), []
    monkeypatch.setattr(
        parts, "Runtime", SimpleNamespace(open=lambda **how: (seen.append(workers()), Runtime.open(**how))[1])
    )
    prepared = prepare(
        compose_run(*SMALL, f"run.root={tmp_path}", "data.num_workers=1", "data.timeout_s=60"), os.environ
    )
    with open_run(prepared, lambda: False, []) as opened:
        assert train(opened.run) == "finished"
        assert workers() == seen[0]  # the same three at the end: of the training set, and of the two evaluated ones
        assert len(workers() - others) == 3
    assert workers() <= others


def test_an_error_in_a_run_leaves_neither_workers_nor_thread(tmp_path: Path) -> None:
    others = workers()
    overrides = *SMALL, f"run.root={tmp_path}", "data.num_workers=1", "data.prefetch=2", "data.timeout_s=60"
    prepared = prepare(compose_run(*overrides), os.environ)
    with contextlib.suppress(KeyboardInterrupt), open_run(prepared, lambda: False, []) as opened:
        opened.run.steps.begin(opened.run.progress)
        next(opened.run.steps.batches.take(opened.run.steps.batches.ramp.at(0)))
        assert "largebatch-data" in [one.name for one in threading.enumerate()]
        raise KeyboardInterrupt
    assert workers() <= others
    assert "largebatch-data" not in [one.name for one in threading.enumerate()]


def test_a_thread_changes_no_number_of_a_run(tmp_path: Path) -> None:
    def weights(prefetch: int) -> Iterator[torch.Tensor]:
        overrides = "data.limit=64", "length=6steps", "batch.total=32", "batch.max_micro=8", "data.augment.flip=true"
        given = (
            *overrides,
            "logger=none",
            "observers.progress=false",
            "schedule.warmup=0ep",
            f"data.prefetch={prefetch}",
        )
        prepared = prepare(compose_run(*given, f"run.root={tmp_path}"), os.environ)
        with open_run(prepared, lambda: False, []) as opened:
            train(opened.run)
            return iter([one.detach().clone() for one in opened.run.module.parameters()])

    assert all(torch.equal(one, other) for one, other in zip(weights(0), weights(3), strict=True))


@pytest.mark.parametrize(
    ("prefetch", "in_memory", "num_workers", "feeds_gpu", "expected"),
    [
        (None, True, 0, True, 2), (None, False, 3, True, 2), (None, False, 0, True, 0), (None, True, 0, False, 0),
        (0, True, 0, True, 0), (5, True, 0, False, 5),
    ],
)  # fmt: skip
def test_a_thread_loads_ahead_for_a_gpu_where_it_can(
    prefetch: int | None, in_memory: bool, num_workers: int, feeds_gpu: bool, expected: int
) -> None:
    data: Any = SimpleNamespace(prefetch=prefetch, num_workers=num_workers)
    train_set = SimpleNamespace(fetch=None) if in_memory else SimpleNamespace()
    found = prefetch_of(data, train_set, feeds_gpu=feeds_gpu)
    assert found.value == expected
    assert found.reason


def test_the_plan_says_how_many_micro_batches_are_prepared_ahead_and_why() -> None:
    def rows(prefetch: int | None, device: Device) -> list[tuple[str, str, str]]:
        config = SimpleNamespace(data=SimpleNamespace(prefetch=prefetch, num_workers=0))
        train_set = SimpleNamespace(fetch=None)
        prepared: Any = SimpleNamespace(config=config, train=train_set, decisions=SimpleNamespace(device=device))
        return prefetch_rows(prepared)

    cpu, gpu = Device(), Device("a GPU", (9, 0), has_bf16=True)
    assert rows(None, cpu) == rows(0, cpu) == []
    assert rows(1, cpu) == [("prepared ahead", "1 micro-batch", "data.prefetch")]
    assert [value for _, value, _ in rows(None, gpu) + rows(0, gpu)] == ["2 micro-batches", "0 micro-batches"]
