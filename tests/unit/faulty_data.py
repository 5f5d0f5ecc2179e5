"""Data sets with one sample that breaks the batch it is in."""

from __future__ import annotations

from typing import Any

from largebatch.data import ArrayDataset, random_classification


def with_faulty_samples(factors: dict[int, float], **options: Any) -> ArrayDataset:
    """`random_classification` with the inputs of some samples multiplied: by NaN, or far beyond the others."""
    dataset = random_classification(**options)
    for sample, factor in factors.items():
        dataset.inputs[int(sample)] *= float(factor)
    return dataset
