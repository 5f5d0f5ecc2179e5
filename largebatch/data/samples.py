"""Conversion and checks of one sample of a user's data set."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from largebatch.data.errors import DataError

TARGET_KEYS = ("labels", "label", "targets", "target")


class BadSampleError(DataError):
    """A sample that cannot be used in any batch. The message continues "Sample 17 "."""


def as_sample(item: Any) -> Any:
    """An item ready for collation: (input, target) or a dict, of numbers, arrays and tensors.

    Lists of numbers become tensors, as in the collators of transformers (torch's own would transpose them). Text among
    the inputs is dropped, since no model takes it; `text_keys` names it. Everything else is unchanged.

    Raises:
        BadSampleError: if the item is None or holds None, or the target is text.
    """
    if type(item) is tuple and len(item) == 2 and isinstance(item[0], Tensor) and isinstance(item[1], (int, Tensor)):
        return item  # the common case, without a search
    if item is None:
        raise BadSampleError("is None: the data set returned nothing for it.")
    if isinstance(item, Mapping):
        return _of_mapping(item)
    if isinstance(item, (tuple, list)) and len(item) == 2:
        inputs, target = item
        return _of_mapping(inputs) if isinstance(inputs, Mapping) else _value(inputs, "input"), _target(target)
    return item


def text_keys(item: Any) -> list[str]:
    """Keys of an item, or of its inputs, that hold text."""
    if isinstance(item, (tuple, list)) and len(item) == 2:
        item = item[0]
    if not isinstance(item, Mapping):
        return []
    return [str(key) for key, value in item.items() if key not in TARGET_KEYS and _is_text(value)]


def list_keys(item: Any) -> list[str]:
    """Keys of an item that hold a list of numbers."""
    if isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], Mapping):
        item = {**item[0], "target": item[1]}
    return [str(key) for key, value in item.items() if _is_numbers(value)] if isinstance(item, Mapping) else []


def form_of(value: Any) -> str:
    """Type and shape of a sample or of a part of it, as text; all samples of a batch must share it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {form_of(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(form_of, value)) + ")"
    if isinstance(value, (int, float)) and not isinstance(value, (bool, np.generic)):
        return "number"  # 5 and 5.5 make one tensor
    shape = getattr(value, "shape", None)
    if shape is None:
        return type(value).__name__
    return f"{type(value).__name__} {str(getattr(value, 'dtype', '')).removeprefix('torch.')} {tuple(shape)}"


def same_items(one: Any, other: Any) -> bool:
    """Whether two items, or lists of such, are equal in every bit; NaN equals NaN.

    >>> same_items({"x": torch.ones(2), "name": "a"}, {"x": torch.ones(2), "name": "a"}), same_items([1], [1, 2])
    (True, False)
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same_items(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_items, one, other))
    if isinstance(one, Tensor):
        one, other = one.detach().cpu(), other.detach().cpu()
        return one.dtype == other.dtype and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fc"))
    return bool(one == other) or repr(one) == repr(other)


@dataclass(frozen=True)
class Screen:
    """Conditions that a usable sample must meet.

    Attributes:
        finite: whether every number must be finite.
        form: required form of every sample, see `form_of`; None accepts any.
    """

    finite: bool = False
    form: str | None = None

    def require_good(self, sample: Any) -> None:
        """Raise BadSampleError unless `sample`, from `as_sample`, can be used."""
        if self.form is not None and (form := form_of(sample)) != self.form:
            raise BadSampleError(f"is {form}, but most others are {self.form}.")
        inputs, target = _parts(sample)
        self.require_numbers(inputs, target)

    def require_numbers(self, inputs: Any, target: Any) -> None:
        """Raise BadSampleError unless inputs and target, of one sample or many, are finite."""
        if self.finite:
            named = inputs if isinstance(inputs, Mapping) else {"input": inputs}
            for name, value in {**named, "target": target}.items():
                if not _is_finite(value):
                    raise BadSampleError(f"holds NaN or infinity: {name}.")


def _of_mapping(item: Mapping[Any, Any]) -> dict[Any, Any]:
    return {
        key: _target(value) if key in TARGET_KEYS else _value(value, key)
        for key, value in item.items()
        if key in TARGET_KEYS or not _is_text(value)
    }


def _value(value: Any, name: str) -> Any:
    if value is None:
        raise BadSampleError(f"holds None: {name}.")
    return torch.tensor(value) if _is_numbers(value) else value


def _target(value: Any) -> Any:
    if _is_text(value):
        raise BadSampleError(f"has the text {value!r:.40} as its target: number the classes from 0.")
    return _value(value, "target")


def _is_text(value: Any) -> bool:
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, (str, bytes))


def _is_numbers(value: Any) -> bool:
    """Whether it is a list of numbers, or a list of equally long lists of numbers."""
    if not isinstance(value, (list, tuple)):
        return False
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, numbers.Number)


def _parts(sample: Any) -> tuple[Any, Any]:
    """Inputs and target, as `split_targets` finds them; the target is None for other items."""
    if isinstance(sample, Mapping):
        keys = [key for key in TARGET_KEYS if key in sample]
        return {key: part for key, part in sample.items() if key not in keys}, sample[keys[0]] if keys else None
    if isinstance(sample, (tuple, list)) and len(sample) == 2:
        return sample[0], sample[1]
    return sample, None


def _is_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not (value.is_floating_point() or value.is_complex()) or bool(torch.isfinite(value).all())
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind not in "fc" or bool(np.isfinite(value).all())
    return not isinstance(value, float) or math.isfinite(value)
