"""Restores a model after a dry run: tensors bit for bit, and the Python attributes of its modules."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from largebatch.gradient.snapshots import is_expanded, preserving_buffers_and_rng


@contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    """On exit restore weights, buffers, modes, gradients, generators and attributes of all modules.

    Attributes are restored if they are numbers, tensors, generators, or plain containers: the counters, caches and
    states that a forward pass changes. The copy of the weights lies on the host.
    """
    weights = [(one, one.detach().to("cpu", copy=True), one.grad) for one in model.parameters()]
    kept = [_kept_attributes(part) for part in model.modules()]
    with preserving_buffers_and_rng(model):
        try:
            yield
        finally:
            for put_back in kept:
                put_back()
            with torch.no_grad():
                for parameter, value, grad in weights:
                    parameter.copy_(value)
                    parameter.grad = grad


def _kept_attributes(part: nn.Module) -> Callable[[], None]:
    """A function that gives a module its attributes back."""
    attributes, seen = dict(part.__dict__), {id(part)}
    contents = [restore for name in attributes for restore in _kept_values(attributes[name], name in _OF_TENSORS, seen)]

    def put_back() -> None:
        part.__dict__.clear()
        part.__dict__.update(attributes)
        for restore in contents:
            restore()

    return put_back


_OF_TENSORS = ("_parameters", "_buffers")  # only the dicts are restored here; `as_before` restores the tensors


def _kept_values(value: Any, is_shallow: bool, seen: set[int]) -> Iterator[Callable[[], Any]]:
    """Functions that restore the present content of an object, and of everything inside it."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.layout != torch.strided or is_expanded(value):
            return
        yield partial(value.data.copy_, value.detach().clone())
    elif isinstance(value, torch.Generator):
        yield partial(value.set_state, value.get_state())
    elif isinstance(value, np.random.Generator):
        yield partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    elif isinstance(value, np.random.RandomState):
        yield partial(value.set_state, value.get_state())
    elif isinstance(value, random.Random):
        yield partial(value.setstate, value.getstate())
    elif isinstance(value, (dict, list, set, deque)):
        yield partial(_refill, value, copy.copy(value))
    if isinstance(value, (dict, list, tuple, deque)) and not is_shallow:
        for member in value.values() if isinstance(value, dict) else value:
            yield from _kept_values(member, False, seen)


def _refill(container: Any, content: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, (list, deque)) else container.update)(content)
