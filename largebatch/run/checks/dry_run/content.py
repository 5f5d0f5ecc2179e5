"""Hashes a few samples that stand for all of a data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from largebatch.data import MicroBatchData, evaluation_batches
from largebatch.distributed.checksums import tensors_sha256
from largebatch.run.config.schema import TrainConfig

_PROBED_SAMPLES = 16


def sampled_content(config: TrainConfig, dataset: Any) -> str:
    """SHA-256, shortened, of `probed_samples`. Changes in other samples are not seen.

    Raises:
        DataError: if one of them cannot be loaded; names it.
    """
    return content_of(probed_samples(config, dataset))


def content_of(batch: MicroBatchData) -> str:
    """SHA-256, shortened, of the samples of a micro-batch."""
    inputs = batch.inputs if isinstance(batch.inputs, dict) else {"input": batch.inputs}
    named = [*((f"inputs.{name}", part) for name, part in inputs.items()), ("targets", batch.targets)]
    return tensors_sha256(named)[:16]


def probed_samples(config: TrainConfig, dataset: Any) -> MicroBatchData:
    """Samples spread over a set, the last one included; each is drawn under its own random key, as in training.

    Raises:
        DataError: if one of them cannot be loaded; names it.
    """
    ids = np.unique(np.linspace(0, len(dataset) - 1, _PROBED_SAMPLES).astype(np.int64))
    skips = config.data.skips
    (batch,) = evaluation_batches(dataset, ids, len(ids), seed=config.seed, skips=skips)
    return batch
