"""What is wrong with the user's data, said so that it can be found and repaired."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "validation"]


class DataError(ValueError):
    """Data that cannot be used: names the file, row or sample, the rule it breaks and the remedy."""


def check_split(split: str) -> None:
    """Raise ValueError unless `split` is "train" or "validation"."""
    if split not in ("train", "validation"):
        raise ValueError(f"split={split!r}: a data set has the splits 'train' and 'validation'.")


def check_labels(smallest: int, largest: int, *, num_classes: int, where: str) -> None:
    """Raise DataError unless all labels lie in [0, num_classes); `where` names the labels in the message."""
    if smallest < 0 or largest >= num_classes:
        raise DataError(
            f"{where}: labels from {smallest} to {largest}, outside [0, {num_classes}). "
            f"Labels count from 0 to num_classes - 1: correct them, or pass the true num_classes."
        )
