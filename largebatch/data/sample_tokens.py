"""Tokens of a sample: the number that all samples of a set have, as in windows of a fixed context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from largebatch.data.collation import Collated
from largebatch.data.samples import as_sample
from largebatch.distributed.generators import preserved_generators


def tokens_per_sample(dataset: Any, declared: int | None = None) -> int:
    """Tokens of every sample: the set's own `context_length`, or else the declared one, if its first sample has it.

    These are the tokens that the model takes, whether or not the loss counts each of them.

    Args:
        dataset: map-style, or in memory; wrappers such as torch's `Subset` are looked into.
        declared: by the user.

    Raises:
        ValueError: if there is no such number, or the set has another one than declared.
    """
    if isinstance(dataset, Collated):
        raise ValueError("data.collate_fn makes batches whose samples may have any number of tokens")
    own = _own_context(dataset)
    if own is not None and declared not in (None, own):
        raise ValueError(f"samples have {own} tokens, the set's own context_length, and data.context_length={declared}")
    if own is not None:
        return own
    if declared is None:
        raise ValueError(
            "samples have no fixed number of tokens that is known: the set has no attribute context_length, and "
            "data.context_length is not given"
        )
    with preserved_generators():
        found = _length_of_sequence(as_sample(dataset[0]))
    if found != declared:
        what = "is no sequence of tokens" if found is None else f"has {found} tokens"
        raise ValueError(f"data.context_length={declared}, and sample 0 {what}")
    return declared


def _own_context(dataset: Any) -> int | None:
    while dataset is not None:
        length = getattr(dataset, "context_length", None)
        if isinstance(length, int) and length > 0:
            return length
        names = ("_dataset", "clean", "dataset")
        dataset = next((one for name in names if (one := getattr(dataset, name, None)) is not None), None)
    return None


def _length_of_sequence(sample: Any) -> int | None:
    """Length of the one-dimensional integers among the inputs, `input_ids` before others."""
    inputs = sample[0] if isinstance(sample, (tuple, list)) else sample
    parts = [inputs.get("input_ids"), *inputs.values()] if isinstance(inputs, Mapping) else [inputs]
    for part in parts:
        is_whole = isinstance(part, Tensor) and not part.is_floating_point() and not part.is_complex()
        is_whole |= isinstance(part, np.ndarray) and part.dtype.kind in "iu"
        if is_whole and part.ndim == 1:
            return len(part)
    return None
