"""Runs on data of which single samples break the batch that they are in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor
from torch.utils.data import Dataset

from largebatch.batch.order import SampleOrder
from largebatch.cli.composition.composing import compose_config
from largebatch.data import ArrayDataset, random_classification
from tests.unit.composing import compose_run


def with_faulty_samples(factors: dict[Any, float], **options: Any) -> ArrayDataset:
    """`random_classification` with the inputs of some samples multiplied: by NaN, or far beyond the others."""
    dataset = random_classification(**options)
    for sample, factor in factors.items():
        dataset.inputs[int(sample)] *= float(factor)
    return dataset


# Whole runs: less than an epoch of 2,048 samples in batches of 32, so that a sample spoils one step.
SMALL = (
    "model=mlp",
    "data=synthetic",
    "data.train.num_samples=2048",
    "batch.total=32",
    "length=48steps",
    "schedule.warmup=0ep",
    "observers.evaluation.every=null",
    "observers.metrics.every=1",
    "observers.ledger.enabled=true",
    "observers.ledger.parameters_every=1",
)
BATCH_NORM = ("model=convnet", "model.width=4")
SKIP = ("guard.policy=skip", "guard.window=20")


def faulty(*overrides: str, factors: dict[int, float]) -> DictConfig:
    """A train config in which the inputs of some samples are multiplied."""
    config = compose_config([*SMALL, *overrides])
    with open_dict(config):
        config.data.train_plain = OmegaConf.create(OmegaConf.to_container(config.data.train, resolve=True))
        config.data.train._target_ = "tests.unit.data.faulty_data.with_faulty_samples"
        config.data.train.factors = {str(sample): factor for sample, factor in factors.items()}
    return config


def samples_of_step(step: int) -> list[int]:
    """Of the run's step `step`, from 1."""
    return SampleOrder(2048, 0).ids(32 * (step - 1), 32).tolist()


def at_steps(factors: dict[int, float]) -> dict[int, float]:
    """A faulty sample in each of some steps."""
    return {samples_of_step(step)[3]: factor for step, factor in factors.items()}


class BrokenFiles(Dataset[Any]):
    """Points of 4 classes, some of which cannot be used: the first cannot be read, the second is None, ..."""

    KINDS = ("truncated", "nothing", "NaN", "shape", "label", "type")

    def __init__(self, count: int, broken: Sequence[int]) -> None:
        self._count = count
        self._broken = {one: self.KINDS[place % len(self.KINDS)] for place, one in enumerate(broken)}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        generator = torch.Generator().manual_seed(index)
        point, label = torch.randn(8, generator=generator) + index % 4, index % 4
        kind = self._broken.get(index)
        if kind == "truncated":
            raise OSError(f"point {index} is truncated")
        if kind == "NaN":
            point[3] = torch.nan
        others: dict[Any, Any] = {
            "nothing": None,
            "shape": (point[:7], label),
            "label": (point, 4),
            "type": (point.double(), label),
        }
        return others.get(kind, (point, label))


class BrokenRows(BrokenFiles):
    """The same in memory; of rows that hold numbers only NaN and the label can be wrong, or reading fails."""

    KINDS = ("NaN", "label", "truncated")

    def fetch(self, ids: Any) -> tuple[Tensor, Tensor]:
        """Points and labels."""
        points, labels = zip(*(self[one] for one in ids.tolist()), strict=True)
        return torch.stack(points), torch.tensor(labels)


def broken_files(*overrides: str, count: int, broken: Sequence[int], kind: str = "BrokenFiles") -> DictConfig:
    """A train config on data of that kind, of which the training set has all broken ones, in float64."""
    config = compose_run("data=synthetic", "model=linear", "precision=fp64", "logger=none", *overrides)
    with open_dict(config):
        config.data.num_classes, config.data.num_features = 4, 8
        for name, samples in (("train", list(broken)), ("validation", [])):
            node = {"_target_": f"tests.unit.data.faulty_data.{kind}", "count": count, "broken": samples}
            config.data[name] = OmegaConf.create(node)
    return config
