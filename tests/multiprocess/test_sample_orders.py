"""Orders of samples from a config: the same samples on any number of ranks, with loading processes, after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from largebatch.batch import WeightedOrder
from largebatch.records.checkpoint import CheckpointError, load_checkpoint
from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import prepare
from largebatch.run.train_quietly import train_quietly
from tests.multiprocess.pool import RankPool
from tests.unit.composing import compose_run

HERE = "tests.multiprocess.test_sample_orders"
COUNT, BATCH, STEPS = 45, 8, 9  # into the second epoch
SMALL = ("data=synthetic", f"batch.total={BATCH}", "batch.micro=2", f"length={STEPS}steps", "schedule.warmup=0ep",
         "model=convnet", "data.augment.crop_padding=1", "data.augment.flip=true", "precision=fp64",
         "observers.ledger.enabled=true", "observers.evaluation.every=null", f"data.limit={COUNT}")  # fmt: skip


class EasyFirst:
    """A curriculum: at first the samples of low labels alone, later all of them."""

    def __init__(self, num_samples: int, seed: int, dataset: Any, slow: int = 1) -> None:
        labels = np.array([int(dataset[one][1]) for one in range(num_samples)])
        self.by_label, self.seed, self.slow = np.argsort(labels, kind="stable"), seed, slow

    def ids_at(self, positions: Any) -> Any:
        known = np.minimum(5 + positions // self.slow, len(self.by_label))
        return self.by_label[(positions * 7919 + self.seed) % known]


class Images(torch.utils.data.Dataset):
    """Read one by one, so in loading processes."""

    def __init__(self, **_: Any) -> None:  # the arguments of the set in its place
        self.images = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Any:
        return self.images[index], int(self.images[index].sum().abs()) % 10


class NoOrder:
    pass


class Drawn:
    def __init__(self, num_samples: int) -> None:
        self.random, self.num_samples = np.random.default_rng(0), num_samples

    def ids_at(self, positions: Any) -> Any:
        return self.random.integers(self.num_samples, size=len(positions))


def trained(folder: str, *overrides: str, stop_after: int | None = None) -> None:
    calls = [0]

    def stop() -> bool:
        calls[0] += 1
        return calls[0] == stop_after

    train_quietly(compose_run(*SMALL, *overrides), folder, stop=stop)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / f"step_{STEPS:08d}").tensors["model"]


def batches(folder: Path) -> list[Any]:
    """What the ledger says of the samples of each step."""
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key in ("step", "ids")} for row in rows]


def weighted(folder: Path) -> str:
    np.save(folder / "weights.npy", np.arange(COUNT) % 3)
    return f"data.order={{_target_: largebatch.batch.WeightedOrder, weights: {folder / 'weights.npy'}}}"


@pytest.mark.parametrize("kind", ["weighted", "own", "sequential"])
def test_an_order_is_the_same_on_any_ranks_with_loading_processes_and_after_a_stop(
    ranks: Callable[[int], RankPool], tmp_path: Path, kind: str
):
    """Augmentation is on: a sample that comes twice in an epoch is changed alike wherever it is computed."""
    order = {
        "weighted": weighted(tmp_path),
        "own": f"data.order={{_target_: {HERE}.EasyFirst, slow: 2}}",
        "sequential": "data.order=sequential",
    }[kind]
    asked = [order, *([f"data.train={{_target_: {HERE}.Images}}"] if kind == "own" else [])]
    trained(str(tmp_path / "one"), *asked)
    ranks(3).run(trained, str(tmp_path / "three"), *asked, f"data.num_workers={2 * (kind == 'own')}")
    ranks(2).run(trained, str(tmp_path / "parts"), *asked, stop_after=3)
    trained(str(tmp_path / "parts"), *asked, "resume=auto")
    expected, samples = weights(tmp_path / "one"), batches(tmp_path / "one")
    assert len(samples) == STEPS
    for other in ("three", "parts"):
        assert batches(tmp_path / other) == samples
        for name, value in weights(tmp_path / other).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-13)
    trained(str(tmp_path / "shuffled"), *asked[1:])
    assert batches(tmp_path / "shuffled") != samples
    with pytest.raises(CheckpointError, match=r"data\.order"):
        trained(str(tmp_path / "one"), *asked[1:], "resume=auto")


def test_a_step_takes_the_samples_that_the_order_draws(tmp_path: Path):
    """Of plain SGD on a linear model: one step by hand from the ids of the order."""
    order = weighted(tmp_path)
    asked = ("model=linear", "length=1steps", "data.augment.crop_padding=0", "data.augment.flip=false",
             "optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.weight_decay=0", order)  # fmt: skip
    prepared = prepare(compose_run(*SMALL, *asked), {})
    ids = WeightedOrder(COUNT, 0, (np.arange(COUNT) % 3).tolist()).ids_at(np.arange(BATCH))
    inputs, labels = prepared.train.fetch(ids)
    model = prepared.model.double()
    torch.nn.functional.cross_entropy(model(inputs.double()), labels).backward()
    rate = prepared.numbers.lr_at(0)
    expected = {name: one.detach() - rate * one.grad for name, one in model.named_parameters()}  # type: ignore[operator]
    trained(str(tmp_path / "run"), *asked)
    after = load_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000001").tensors["model"]
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("{_target_: torch.utils.data.RandomSampler, data_source: [1]}", "a Sampler of torch goes by its own state"),
        (f"{{_target_: {HERE}.NoOrder}}", "a NoOrder has no ids_at"),
        (f"{{_target_: {HERE}.Drawn}}", "Drawn.ids_at is no function of the position"),
        (f"{{_target_: {HERE}.EasyFirst, slowly: 2}}", "data.order.slowly=2"),
        ("{_target_: largebatch.batch.WeightedOrder, weights: [1.0, 2.0]}", f"[2] numbers for {COUNT} samples"),
        ("{_target_: largebatch.batch.WeightedOrder, weights: nowhere.npy}", "nowhere.npy"),
        ("sequentially", "data.order"),
    ],
)
def test_what_is_no_order_is_refused_before_the_run(order: str, expected: str):
    with pytest.raises(ConfigError) as raised:
        prepare(compose_run(*SMALL, f"data.order={order}"), {})
    assert expected in str(raised.value)
