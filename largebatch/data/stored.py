"""Data sets whose inputs travel as they are stored: a byte per pixel, made into float32 on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def stored_form(dataset: Any) -> tuple[Any, Callable[[Tensor], Tensor] | None]:
    """The same samples with inputs as they are stored, and the function that makes the model's inputs of a batch.

    That function works on any device. A data set offers both by a method `stored_form`; of one without it, inputs are
    what the model gets, and there is no function.
    """
    # Of its class: an object that passes on the attributes of another one may change that one's samples.
    offered = getattr(type(dataset), "stored_form", None)
    return (dataset, None) if offered is None else offered(dataset)
