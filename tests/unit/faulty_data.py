"""Runs on data of which single samples break the batch that they are in."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from largebatch.commands.composition import compose_config
from largebatch.data import ArrayDataset, random_classification
from largebatch.order import SampleOrder


def with_faulty_samples(factors: dict[int, float], **options: Any) -> ArrayDataset:
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
    "schedule.warmup=1steps",
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
        config.data.train._target_ = "tests.unit.faulty_data.with_faulty_samples"
        config.data.train.factors = {str(sample): factor for sample, factor in factors.items()}
    return config


def samples_of_step(step: int) -> list[int]:
    """Of the run's step `step`, from 1."""
    return SampleOrder(2048, 0).ids(32 * (step - 1), 32).tolist()


def at_steps(factors: dict[int, float]) -> dict[int, float]:
    """A faulty sample in each of some steps."""
    return {samples_of_step(step)[3]: factor for step, factor in factors.items()}
