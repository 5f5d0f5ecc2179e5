"""States of any nesting, as observers of the user's own have them: plain values apart from tensors, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

_TENSOR = "_tensor_"  # in place of a tensor: the name under which it is saved


def pack_nested(state: Any, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Plain values with the names of tensors in their places, and these tensors by name.

    Args:
        state: dicts with text keys and lists, of plain values and tensors.
        name: begins the names of the tensors.

    >>> pack_nested({"best": 0.5, "recent": []}, "mine")
    ({'best': 0.5, 'recent': []}, {})
    """
    tensors = dict[str, Tensor]()

    def packed(value: Any, where: str) -> Any:
        if isinstance(value, Tensor):
            tensors[where] = value
            return {_TENSOR: where}
        if isinstance(value, Mapping):
            return {key: packed(part, f"{where}.{key}") for key, part in value.items()}
        if isinstance(value, list):
            return [packed(part, f"{where}.{number}") for number, part in enumerate(value)]
        return value

    return packed(state, name), tensors


def unpack_nested(state: Any, fetch: Callable[[str], Tensor]) -> Any:
    """The inverse of `pack_nested`; `fetch` gives the tensor of a name."""
    if isinstance(state, dict):
        if state.keys() == {_TENSOR}:
            return fetch(state[_TENSOR])
        return {key: unpack_nested(part, fetch) for key, part in state.items()}
    return [unpack_nested(part, fetch) for part in state] if isinstance(state, list) else state
