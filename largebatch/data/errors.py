"""Errors in the user's data, with the place and the remedy."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "validation"]
OnBadSample = Literal["stop", "skip"]


class DataError(ValueError):
    """Unusable data. The message names the file, row or sample, the rule it breaks and the remedy."""


class StreamError(DataError):
    """A stream that cannot be read on: nothing behind it can be loaded, so nothing is left out."""


def check_split(split: str) -> None:
    """Raise ValueError unless `split` is "train" or "validation"."""
    if split not in ("train", "validation"):
        raise ValueError(f"split={split!r}: choose 'train' or 'validation'.")


def check_on_bad_sample(on_bad_sample: str) -> None:
    """Raise ValueError unless `on_bad_sample` is "stop" or "skip"."""
    if on_bad_sample not in ("stop", "skip"):
        raise ValueError(
            f"on_bad_sample={on_bad_sample!r}: choose 'stop' to refuse a bad sample or 'skip' to leave it out."
        )


def check_labels(smallest: int, largest: int, *, num_classes: int, where: str) -> None:
    """Raise DataError unless all labels lie in [0, num_classes); `where` names the labels in the message."""
    if smallest < 0 or largest >= num_classes:
        raise DataError(labels_outside(smallest, largest, num_classes=num_classes, where=where))


def labels_outside(smallest: int, largest: int, *, num_classes: int, where: str) -> str:
    """Error text for labels at `where` outside [0, num_classes)."""
    return (
        f"{where}: labels from {smallest} to {largest}, outside [0, {num_classes}). "
        f"Labels count from 0 to num_classes - 1: correct them, or pass the true num_classes."
    )
